"""Sentences in eleven languages other than English: what a crawl's other half is written in.

A sentence is a subject and a predicate, each drawn from a short list. ``SHARES`` has the weights:
how often a language is a page's first language in Common Crawl (its statistics of 2023–2025,
rounded, in per cent of all pages; English has about 44).
Simplified away: some 150 further languages, and pages that mix two.
"""

import random

SHARES = {
    "ru": 6.0, "de": 5.5, "ja": 5.0, "zh": 5.0, "es": 4.5, "fr": 4.4, "it": 2.5, "pt": 2.2,
    "nl": 1.9, "pl": 1.8, "ko": 0.7,
}  # fmt: skip

SUBJECTS = {
    "ru": "Мой брат|Моя сестра|Наш сосед|Старый пекарь|Учительница|Моя бабушка|Мальчик|Врач",
    "de": "Mein Bruder|Meine Schwester|Unser Nachbar|Der alte Bäcker|Die Lehrerin|Meine "
          "Großmutter|Das Mädchen|Der Arzt",
    "ja": "私の兄は|私の姉は|隣の人は|年を取ったパン屋は|先生は|祖母は|男の子は|医者は",
    "zh": "我的哥哥|我的姐姐|我们的邻居|老面包师|那位老师|我的奶奶|那个男孩|医生",
    "es": "Mi hermano|Mi hermana|Nuestro vecino|El viejo panadero|La maestra|Mi abuela|El "
          "muchacho|El médico",
    "fr": "Mon frère|Ma sœur|Notre voisin|Le vieux boulanger|La maîtresse|Ma grand-mère|Le "
          "garçon|Le médecin",
    "it": "Mio fratello|Mia sorella|Il nostro vicino|Il vecchio fornaio|La maestra|Mia nonna|Il "
          "ragazzo|Il medico",
    "pt": "O meu irmão|A minha irmã|O nosso vizinho|O velho padeiro|A professora|A minha avó|O "
          "rapaz|O médico",
    "nl": "Mijn broer|Mijn zus|Onze buurman|De oude bakker|De lerares|Mijn grootmoeder|De "
          "jongen|De dokter",
    "pl": "Mój brat|Moja siostra|Nasz sąsiad|Stary piekarz|Nauczycielka|Moja "
          "babcia|Chłopiec|Lekarz",
    "ko": "우리 형은|우리 누나는|이웃 사람은|늙은 빵집 주인은|선생님은|할머니는|소년은|의사는",
}  # fmt: skip
PREDICATES = {
    "ru": "каждое утро ходит на рынок|покупает свежий хлеб и сыр|живёт в маленьком доме у "
          "реки|рассказывает длинную историю о море|играет вечером на скрипке|ждёт поезда на "
          "станции|любит гулять по лесу|пишет письмо своему другу|работает в саду до темноты",
    "de": "geht jeden Morgen zum Markt|kauft frisches Brot und Käse|wohnt in einem kleinen Haus "
          "am Fluss|erzählt eine lange Geschichte vom Meer|spielt am Abend Geige|wartet am "
          "Bahnhof auf den Zug|geht gern im Wald spazieren|schreibt einem Freund einen "
          "Brief|arbeitet bis zum Abend im Garten",
    "ja": "毎朝市場へ行きます|新しいパンとチーズを買います|川のそばの小さな家に住んでいます|"
          "海についての長い話をします|夜にバイオリンを弾きます|駅で電車を待っています|森を歩"
          "くのが好きです|友達に手紙を書きます|暗くなるまで庭で働きます",
    "zh": "每天早上去市场|买新鲜的面包和奶酪|住在河边的小房子里|讲了一个关于大海的长故事|晚"
          "上拉小提琴|在车站等火车|喜欢在森林里散步|给朋友写信|在花园里工作到天黑",
    "es": "va al mercado todas las mañanas|compra pan fresco y queso|vive en una casa pequeña "
          "junto al río|cuenta una larga historia sobre el mar|toca el violín por la noche|espera"
          " el tren en la estación|pasea con gusto por el bosque|escribe una carta a su "
          "amigo|trabaja en el jardín hasta la noche",
    "fr": "va au marché tous les matins|achète du pain frais et du fromage|habite une petite "
          "maison au bord de la rivière|raconte une longue histoire sur la mer|joue du violon le "
          "soir|attend le train à la gare|aime se promener dans la forêt|écrit une lettre à son "
          "ami|travaille dans le jardin jusqu'à la nuit",
    "it": "va al mercato ogni mattina|compra pane fresco e formaggio|abita in una piccola casa "
          "vicino al fiume|racconta una lunga storia sul mare|suona il violino di sera|aspetta il"
          " treno alla stazione|passeggia volentieri nel bosco|scrive una lettera al suo "
          "amico|lavora in giardino fino a sera",
    "pt": "vai ao mercado todas as manhãs|compra pão fresco e queijo|mora numa casa pequena junto"
          " ao rio|conta uma longa história sobre o mar|toca violino à noite|espera o comboio na "
          "estação|gosta de passear na floresta|escreve uma carta ao seu amigo|trabalha no jardim"
          " até à noite",
    "nl": "gaat elke ochtend naar de markt|koopt vers brood en kaas|woont in een klein huis aan "
          "de rivier|vertelt een lang verhaal over de zee|speelt 's avonds viool|wacht op het "
          "station op de trein|wandelt graag in het bos|schrijft een brief aan een vriend|werkt "
          "tot het donker wordt in de tuin",
    "pl": "chodzi co rano na targ|kupuje świeży chleb i ser|mieszka w małym domu nad "
          "rzeką|opowiada długą historię o morzu|gra wieczorem na skrzypcach|czeka na stacji na "
          "pociąg|lubi spacerować po lesie|pisze list do przyjaciela|pracuje w ogrodzie do zmroku",
    "ko": "매일 아침 시장에 간다|신선한 빵과 치즈를 산다|강가의 작은 집에 산다|"
          "바다에 대한 긴 이야기를 들려준다|저녁에 바이올린을 켠다|역에서 기차를 기다린다|"
          "숲에서 산책하는 것을 좋아한다|친구에게 편지를 쓴다|"
          "어두워질 때까지 정원에서 일한다",
}  # fmt: skip
assert set(SHARES) == set(SUBJECTS) == set(PREDICATES)


def draw_language(rng: random.Random) -> str:
    """A code of ISO 639-1, by ``SHARES``."""
    return rng.choices(list(SHARES), list(SHARES.values()))[0]


def foreign_paragraph(language: str, rng: random.Random) -> str:
    """Three to seven sentences in ``language``."""
    subjects, predicates = SUBJECTS[language].split("|"), PREDICATES[language].split("|")
    space, stop = ("", "。") if language in ("ja", "zh") else (" ", ".")
    return space.join(
        rng.choice(subjects) + space + rng.choice(predicates) + stop
        for _ in range(rng.randint(3, 7))
    )
