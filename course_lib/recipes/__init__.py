"""How the shipped models were made, one module a stage: ``make model`` runs them in this order.

``base`` pretrains the base model, ``instruct`` tunes it on instructions, ``preference`` by people's
preferences, and ``reasoning`` trains the base model with verifiable rewards. Each works in a folder
below ``build/``, goes on where it was when it was killed, measures its model on held-out items, and
writes weights, card, figures and checksums into ``course_lib/shipped/<stage>``.
"""
