"""The crawl filter: from raw HTML to the text one trains on.

``curate`` filters a stream of pages, ``Funnel`` counts, ``python -m course_lib.curation`` runs a
large crawl and writes its figures. Needs the extra ``curation``.
"""

from course_lib.curation.duplicates import DuplicateIndex, band_keys, shingles
from course_lib.curation.personal import mask_personal
from course_lib.curation.pipeline import Document, Funnel, back, curate, front, main_text, samples
from course_lib.curation.removal import Contamination, evaluation_items, leak_texts

__all__ = [
    "Contamination", "Document", "DuplicateIndex", "Funnel", "back", "band_keys", "curate",
    "evaluation_items", "front", "leak_texts", "main_text", "mask_personal", "samples", "shingles",
]  # fmt: skip
