"""What the labellers' taste for long or flattering replies, and what they never saw, teach.

The same replies are ranked by labellers without a bias, by ones who like every sentence, and by
ones who like flattery. The models are asked about matched pairs, which differ in one sentence that
makes a reply worse by half a reason. A last model learnt from replies none of which was cut off.
"""

from statistics import fmean

from course_lib import plotting, reward, rlhf
from course_lib.measuring import mean_interval
from course_lib.rlhf import Ranking, Reply, read_reply
from course_lib.studies import guests
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world import preferences
from course_lib.world.preferences import FLATTERY, panel, read_sentence

LENGTH, PRAISE = 1.0, 1.5
"""Worth of a sentence, and of one that flatters, to those who like them. The truth takes 1/2 off
for either, so what such a sentence does to a reply turns round."""
GRID = {
    "no bias": {},
    "like length": {"length_bias": LENGTH},
    "like flattery": {"flattery_bias": PRAISE},
    "saw no cuts": {"cut": 0.0},
}
SEEDS = range(8)
MODELS = ("instruct",)
USES = (
    guests, preferences, rlhf.tune_on_demonstrations, rlhf.demonstration_rows, rlhf.sample_replies,
    rlhf.read_reply, rlhf.collect_rankings, rlhf.rank_again, rlhf._cut, rlhf.RankingBatches,
    rlhf.train_reward_model, rlhf.score_replies, reward.ranking_loss, reward.bradley_terry_loss,
    reward.score_rows, reward.last_token_scores, reward.accuracy, reward.collate_rankings,
)  # fmt: skip
CHECKS = {"no bias": ("accuracy", "truth")}
LEAST_SPREAD = {"flattered": 0.1, "longer": 0.1, "accuracy": 0.01, "truth": 0.05,
                "below the empty reply": 0.02}  # fmt: skip
RANKINGS, STEPS = 280, 70


def labelled(seed: int, cut: float = rlhf.CUT, **bias) -> list[Ranking]:
    """Rankings by labellers of a bias; the same replies for each, if as many are cut."""
    tokenizer, labellers = shipped("instruct")[1], panel(seed, **bias)
    if cut != rlhf.CUT:
        return rlhf.collect_rankings(guests.policy_of(seed), tokenizer, labellers, RANKINGS, seed,
                                     cut=cut)  # fmt: skip
    rankings = guests.rankings_of(seed, RANKINGS)
    return rlhf.rank_again([[reply for reply, _ in r] for r in rankings], labellers, seed)


# --- matched pairs ------------------------------------------------------------------------------


def plain_replies(seed: int) -> list[Reply]:
    """Replies to held-out questions, of reasons alone: one or two of them."""
    replies = [reply for ranking in guests.held_out_rankings(seed) for reply, _ in ranking]
    return [r for r in replies if 0 < r.judgement.reasons == r.judgement.sentences < 3]


def with_text(reply: Reply, text: str) -> Reply:
    """Another reply to the same question, ended."""
    tokenizer = shipped("instruct")[1]
    ids = tokenizer(text)["input_ids"]
    return read_reply(tokenizer, reply.question, [*ids, tokenizer.eos_token_id])


def flattered(reply: Reply, which: int = 0) -> Reply:
    """The same behind a sentence of flattery."""
    return with_text(reply, f" {FLATTERY[which % len(FLATTERY)]}{reply.text}")


def lengthened(reply: Reply) -> Reply:
    """The same with its last thing praised once more, in words that do not stand there yet."""
    last = [s.strip() for s in preferences.SENTENCE.findall(reply.text) if s.strip()][-1]
    thing, _ = read_sentence(last)
    more = next(text for text in (f"The {thing} was great.", f"The {thing} was lovely.")
                if text not in reply.text)  # fmt: skip
    return with_text(reply, f"{reply.text} {more}")


def empty(reply: Reply) -> Reply:
    """Nothing, ended."""
    return with_text(reply, "")


# --- rows ---------------------------------------------------------------------------------------


def picked(rankings: list[Ranking], score: dict[int, float]) -> list[Reply]:
    """Of the replies to each question the one of the highest score.

    Args:
        score: of each reply, by its ``id``.
    """
    return [max((reply for reply, _ in ranking), key=lambda reply: score[id(reply)])
            for ranking in rankings]  # fmt: skip


def measures_of(reward_model, seed: int) -> dict[str, float]:
    """What ``run`` gives, of any reward model."""
    plain, rankings = plain_replies(seed), guests.held_out_rankings(seed)
    asked = [[reply for reply, _ in ranking] for ranking in rankings]
    everything = [reply for group in asked for reply in group]
    praised = [flattered(reply, i) for i, reply in enumerate(plain)]
    longer = [lengthened(reply) for reply in plain]
    nothing = [empty(group[0]) for group in asked]
    replies = [*everything, *praised, *longer, *nothing]
    found = rlhf.score_replies(reward_model, shipped("instruct")[1], replies)
    score = dict(zip(map(id, replies), found, strict=True))

    def lead(ours: list[Reply], theirs: list[Reply]) -> float:
        return fmean(score[id(a)] - score[id(b)] for a, b in zip(ours, theirs, strict=True))

    pairs, best = guests.pairs_of(rankings), picked(rankings, score)
    return {
        "flattered": lead(praised, plain),
        "longer": lead(longer, plain),
        "below the empty reply": fmean(score[id(reply)] < score[id(none)]
                                       for none, group in zip(nothing, asked) for reply in group),
        "accuracy": fmean(score[id(a)] > score[id(b)] for a, b in pairs),
        "truth": fmean(reply.truth for reply in best),
        "truth of all": fmean(reply.truth for reply in everything),
        "flattery": fmean(reply.judgement.flattery for reply in best),
        "sentences": fmean(reply.judgement.sentences for reply in best),
    }  # fmt: skip


def run(setting: dict, seed: int) -> dict[str, float]:
    """One row.

    ``flattered``, ``longer``: mean log-odds by which a sentence of flattery, or one that says
    nothing new, raises a plain reply; ``below the empty reply``: share of replies with a lower
    score than none at all; ``accuracy`` on held-out clean pairs; ``truth``, ``flattery``,
    ``sentences`` of the replies that the model picks, and ``truth of all``.
    """
    model = rlhf.train_reward_model(guests.policy_of(seed), shipped("instruct")[1],
                                    labelled(seed, **setting), seed, steps=STEPS)  # fmt: skip
    return measures_of(model, seed)


def draw(results: Results):
    """What one more sentence does to the score, and the accuracy, with 99 % intervals."""
    names = {"flattered": "flattery added\n(log-odds)", "longer": "repetition added\n(log-odds)",
             "below the empty reply": "below the empty\nreply (share)",
             "accuracy": "right on clean\npairs (share)"}  # fmt: skip
    fig, axes = plotting.panels("What the labellers' taste teaches", 4, size=(9, 3.2))
    for ax, (measure, label) in zip(axes, names.items(), strict=True):
        for y, setting in enumerate(results.settings):
            mean, low, high = mean_interval(results.of(setting, measure).values)
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], marker="o", capsize=4,
                        linestyle="none", color=plotting.COLOURS["blue"])  # fmt: skip
        ax.set_yticks(range(len(results.settings)), results.settings if ax is axes[0] else [])
        ax.set_ylim(len(results.settings) - 0.5, -0.5)
        ax.set_xlabel(label)
        if measure != "accuracy":
            ax.axvline(0, color=plotting.INK, linestyle=":")
    return fig
