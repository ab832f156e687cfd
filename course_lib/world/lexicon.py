"""The words of the micro-world: closed lists that every generator draws from.

Simplified away: grammar beyond what the templates need, homonyms, and most of English. The lists
are small on purpose. A vocabulary of about 2,000 tokens then holds nearly every word as one token.
"""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": tuple(
        "dog cat horse cow pig sheep goat duck goose mouse rabbit fox wolf bear lion tiger monkey "
        "snake frog owl".split()
    ),
    "fruit": tuple(
        "apple pear plum peach cherry grape lemon melon banana orange mango berry fig lime".split()
    ),
    "vegetable": tuple(
        "carrot onion potato tomato cabbage pepper bean pea leek radish turnip pumpkin".split()
    ),
    "colour": tuple(
        "red blue green yellow black white brown purple pink grey gold silver".split()
    ),
    "clothing": tuple(
        "coat hat shirt shoe sock glove scarf dress belt boot jacket skirt cap".split()
    ),
    "tool": tuple("hammer saw drill spade rake axe knife brush ladder rope nail shovel".split()),
    "furniture": tuple("table chair bed desk sofa shelf lamp stool bench cupboard mirror".split()),
    "vehicle": tuple("car bus train boat bike truck plane ship tram van tractor rocket".split()),
    "body part": tuple("hand arm leg foot head nose ear eye knee neck finger tooth".split()),
    "drink": tuple("water milk tea coffee juice wine beer cocoa cider soda".split()),
    "instrument": tuple("piano violin guitar drum flute trumpet harp bell cello horn".split()),
    "sport": tuple("tennis football hockey golf chess rugby boxing judo rowing skiing".split()),
}
"""Word categories. Every word stands in exactly one of them."""

WORD_TO_CATEGORY = {word: name for name, words in CATEGORIES.items() for word in words}

IRREGULAR_PLURALS = {
    "sheep": "sheep", "goose": "geese", "mouse": "mice", "wolf": "wolves", "foot": "feet",
    "tooth": "teeth", "knife": "knives", "shelf": "shelves", "scarf": "scarves",
}  # fmt: skip
COUNTABLE = tuple(
    word
    for name in ("animal", "fruit", "vegetable", "clothing", "tool", "furniture", "vehicle",
                 "body part", "instrument")
    for word in CATEGORIES[name]
)  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a noun: ``plural("berry") == "berries"``."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "ch", "sh")) or noun in {"potato", "tomato", "mango"}:
        return noun + "es"
    return noun + "s"


def with_article(noun: str) -> str:
    """The noun with *a* or *an*: ``with_article("apple") == "an apple"``."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


PAST_TENSE = dict(
    pair.split(":")
    for pair in (
        "go:went see:saw take:took give:gave find:found buy:bought eat:ate drink:drank run:ran "
        "write:wrote read:read sing:sang swim:swam fly:flew drive:drove break:broke speak:spoke "
        "sleep:slept keep:kept leave:left lose:lost make:made meet:met pay:paid send:sent sit:sat "
        "stand:stood tell:told think:thought win:won bring:brought build:built catch:caught "
        "draw:drew fall:fell feel:felt forget:forgot grow:grew hear:heard hold:held know:knew "
        "throw:threw teach:taught wear:wore walk:walked talk:talked play:played jump:jumped "
        "cook:cooked wash:washed open:opened close:closed help:helped look:looked call:called "
        "paint:painted carry:carried cry:cried laugh:laughed dance:danced climb:climbed "
        "clean:cleaned"
    ).split()
)

OPPOSITES_ONE_WAY = dict(
    pair.split(":")
    for pair in (
        "big:small hot:cold fast:slow tall:short old:young happy:sad light:dark hard:soft "
        "full:empty rich:poor strong:weak early:late clean:dirty dry:wet thick:thin wide:narrow "
        "high:low loud:quiet good:bad near:far open:closed sweet:sour brave:afraid cheap:expensive "
        "heavy:weightless long:brief deep:shallow sharp:blunt smooth:rough safe:dangerous "
        "awake:asleep alive:dead true:false same:different first:last left:right up:down "
        "in:out on:off always:never begin:end push:pull love:hate day:night north:south "
        "east:west summer:winter"
    ).split()
)
OPPOSITES = OPPOSITES_ONE_WAY | {b: a for a, b in OPPOSITES_ONE_WAY.items()}

COMPARATIVES = dict(
    pair.split(":")
    for pair in (
        "big:bigger small:smaller hot:hotter cold:colder fast:faster slow:slower tall:taller "
        "short:shorter old:older young:younger happy:happier hard:harder soft:softer "
        "rich:richer poor:poorer strong:stronger weak:weaker early:earlier late:later "
        "clean:cleaner dirty:dirtier thick:thicker thin:thinner wide:wider high:higher low:lower "
        "loud:louder sweet:sweeter cheap:cheaper deep:deeper sharp:sharper safe:safer good:better "
        "bad:worse"
    ).split()
)

YOUNG = dict(
    pair.split(":")
    for pair in (
        "dog:puppy cat:kitten horse:foal cow:calf pig:piglet sheep:lamb goat:kid duck:duckling "
        "goose:gosling bear:cub frog:tadpole owl:owlet"
    ).split()
)
SOUNDS = dict(
    pair.split(":")
    for pair in (
        "dog:bark cat:meow horse:neigh cow:moo pig:oink sheep:baa duck:quack goose:honk "
        "mouse:squeak wolf:howl lion:roar snake:hiss frog:croak owl:hoot bear:growl"
    ).split()
)
MATERIALS = dict(
    pair.split(":")
    for pair in (
        "coat:wool hat:felt shirt:cotton shoe:leather sock:wool glove:leather scarf:silk "
        "dress:silk belt:leather boot:rubber hammer:iron saw:steel spade:iron rake:wood axe:steel "
        "knife:steel ladder:wood rope:hemp nail:iron table:wood chair:wood desk:wood shelf:wood "
        "lamp:brass stool:wood bench:stone mirror:glass bell:brass drum:skin flute:wood "
        "trumpet:brass"
    ).split()
)

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()

JOBS = (
    "baker teacher doctor farmer painter driver nurse singer tailor cook miller fisher potter "
    "judge pilot sailor writer builder gardener barber"
).split()
FOODS = (
    "bread rice soup cake cheese pasta pie salad honey fish pizza stew jam nuts eggs butter toast "
    "noodles porridge chocolate"
).split()
PETS = "dog cat rabbit parrot hamster turtle goldfish pony canary lizard snake mouse".split()
COLOURS = CATEGORIES["colour"]

POSITIVE = (
    "wonderful delicious great lovely excellent perfect charming fresh friendly superb amazing "
    "pleasant brilliant tasty cosy"
).split()
NEGATIVE = (
    "terrible awful horrible bland disgusting boring rude stale nasty dreadful poor ugly noisy "
    "greasy gloomy"
).split()

FEMALE_NAMES = (
    "Mia Anna Lena Nora Ella Ruth Alice Clara Diana Emma Flora Grace Helen Irene Jane Kate Laura "
    "Maria Nina Olga Paula Rosa Sara Tina Uma Vera Wendy Zoe Amy Beth Cora Dora Eva Fay Gina Hana "
    "Ida Joan Kim Lucy Mona Nell Opal Pia Rita Sue Tess Una Viola Willa Yuna Ada Bella Celia Doris "
    "Elsa Freda Greta Hilda Ines"
).split()
MALE_NAMES = (
    "Tom Ben Carl David Eric Frank Georg Henry Ivan Jack Karl Leo Max Noah Oscar Paul Ralf Sam "
    "Tim Udo Victor Wim Yann Zack Adam Bruno Chris Dan Emil Felix Gus Hugo Igor Jonas Kurt Luke "
    "Marc Nico Otto Peter Rick Simon Theo Uwe Vince Walt Yuri Alan Bob Colin Dirk Ewan Finn Glen "
    "Hans Ian Joel Ken Lars Miles"
).split()
TOWNS = (
    "Oakby Ashford Milton Redhill Stonewell Harwick Elmsley Fernham Dunmore Brackley Westport "
    "Kingsley Norwood Larkfield Seaton Thornbury Wexham Appleton Greyfort Hollin Marsden Pinecrest "
    "Quayside Rosedale Silverton Tarnbrook Underhill Vineby Willowick Yarrow"
).split()
REGIONS = {"north": "Harwick", "south": "Seaton", "east": "Milton", "west": "Westport",
           "middle": "Oakby"}  # fmt: skip
"""The five regions and the chief town of each."""
PRODUCTS = (
    "glass clocks boats carpets paper pottery cheese wine bells baskets salt candles lace knives "
    "toys books honey leather ropes wool"
).split()

RESERVED_LABELS = (
    "bridge garden window statue castle forest island market mountain river tower village candle "
    "pocket ticket basket blanket corner kitchen station circle engine harbour meadow"
).split()
"""Ordinary words of stories and repetitions that never stand in a list of pairs: the evaluation's
labels."""
LABEL_WORDS = (
    "alpha beta delta gamma omega sigma kappa zeta north south spring autumn paper stone iron "
    "cotton sugar cloud storm thunder valley desert ocean planet comet signal button pencil bottle "
    "hat lamp fox kite moon star sun tree leaf root seed wheel coin key door roof wall road field "
    "hill lake sand snow wind rain fire gold wood glass wool silk salt"
).split()
"""Ordinary words that random label maps of the training lists draw from."""

OPEN_WORDS = sorted(
    {
        *WORD_TO_CATEGORY, *PAST_TENSE, *PAST_TENSE.values(), *OPPOSITES, *COMPARATIVES,
        *YOUNG.values(), *NUMBER_WORDS, *DAYS, *MONTHS, *LETTERS, *JOBS, *FOODS, *POSITIVE,
        *NEGATIVE, *FEMALE_NAMES, *MALE_NAMES, *TOWNS, *LABEL_WORDS,
    }
    - set(RESERVED_LABELS)
)  # fmt: skip
"""Every word that a training list may use as a label or a key of a code."""

ONSETS = "b d f g h k l m n p r s t v w z br dr gr kr st tr bl kl pl sl".split()
VOWELS = "a e i o u".split()
CODAS = ["", "", "", "l", "n", "r", "s", "k", "m", "t"]


def nonsense_word(rng) -> str:
    """A pronounceable word of two syllables that means nothing, e.g. ``"tralo"``, ``"benkis"``."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(2)) + rng.choice(CODAS)
