# /// script
# requires-python = ">=3.10"
# dependencies = ["lm_eval==0.4.13", "tokenizers>=0.21", "pyarrow>=15"]
# ///
"""What lm-evaluation-harness 0.4.13 and CPython do with invented documents: the fixtures of harness/tests/tasks.rs.

    task_golden.py [--stories260k TOKENIZER_JSON] [OUT_DIR]        default harness/tests/fixtures/tasks

No network and no torch: `datasets.load_dataset` is replaced by a function that hands over the documents below under the
data sets' own column names. Everything else is lm-eval's own code:

    tasks.json      requests of every task for 0, 1 and 4 examples, and the metrics of made-up log-likelihoods
    encoding.json   `TemplateLM.loglikelihood` and `get_rolling_token_windows` with the tokenizer of the built-in model and,
                    where its file is named, that of stories260K, which the repository does not hold
    metrics.json    aggregation, standard errors, bootstrap, groups
    python.json     values of CPython's `random.Random` and `str`
    arc.parquet     ARC's columns as the hub has them (a structure of lists), written by pyarrow

All documents are invented here. The files depend on nothing but this script and the versions named above; what CPython
gives for `str.title` also depends on its Unicode version.
"""

import argparse
import json
import logging
import os
import random
from pathlib import Path

os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", DISABLE_MULTIPROC="1")

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict

ROOT = Path(__file__).resolve().parents[2]

NOUNS = "lantern kettle river hammer orchard violin glacier button ferry mirror saddle comet".split()
VERBS = "opens finds mends paints carries forgets measures borrows".split()
ADJECTIVES = "quiet, rusty, narrow, bright, hollow, patient".split(", ")


def phrase(r, n):
    words = [f"the {r.choice(ADJECTIVES)} {r.choice(NOUNS)} {r.choice(VERBS)}" for _ in range(n)]
    return " and ".join(words)


def rows(make, n, seed):
    r = random.Random(seed)
    return [make(r, i) for i in range(n)]


def piqa(r, i):
    return {"goal": phrase(r, 1), "sol1": phrase(r, 1), "sol2": phrase(r, 1), "label": r.randrange(2)}


PIQA = [
    {"goal": "How do I keep a kettle's lid shut?", "sol1": "Tie it. ", "sol2": "Use jam.", "label": 0},
    {"goal": "naïve café — open", "sol1": "push door", "sol2": "plié 日本", "label": 1},
    {"goal": " spaces  inside ", "sol1": "aaaa", "sol2": "éé", "label": 1},
]


def hellaswag(r, i):
    return {"ind": i, "activity_label": r.choice(NOUNS).title(), "ctx_a": phrase(r, 1) + ".", "ctx_b": "the Ferry",
            "ctx": "-", "endings": [phrase(r, 1) for _ in range(4)], "label": str(r.randrange(4))}


HELLASWAG = [
    {"ind": 4, "activity_label": "Mending a lantern", "ctx_a": "A man sits by a Lantern.", "ctx_b": "then", "ctx": "-",
     "endings": [", he adds oil and lights it.", ", a person boards a ferry.", ", he wears a hat.", ", he sleeps."],
     "label": "3"},
    {"ind": 5, "activity_label": "Home", "ctx_a": "[header] How to Row [title] Find  the   BEST [step] Boat.",
     "ctx_b": "he Said McRiver İ", "ctx": "-",
     "endings": [" [title] Buy it. [substeps] one. ", "[step]  Wait", "No  [x\ny] brackets [", "  lead [a [b] c]"],
     "label": "0"},
    {"ind": 6, "activity_label": " ", "ctx_a": "", "ctx_b": "", "ctx": "-", "endings": ["a", "b", "c", "d"], "label": "1"},
    {"ind": 7, "activity_label": "ß", "ctx_a": "Ça.", "ctx_b": "ßTRASSE ΟΔΟΣ", "ctx": "-",
     "endings": ["\u001c x\u00a0", "y", "z", "w"], "label": "2"},
]


def winogrande(r, i):
    a, b = r.sample(NOUNS, 2)
    return {"sentence": f"The {a} hid the {b} because the _ was {r.choice(ADJECTIVES)}.", "option1": a, "option2": b,
            "answer": r.choice("12")}


WINOGRANDE = [
    {"sentence": "Mara rows faster than Ines, so _ usually wins the cup.", "option1": "Mara", "option2": "Ines", "answer": "1"},
    {"sentence": "The violin did not fit the case because of _'s size.", "option1": "the violin", "option2": "the case",
     "answer": "1"},
    {"sentence": "Ivo lent Ned's hammer to a friend; it was missed by _.", "option1": "Ivo", "option2": "Ned", "answer": "2"},
]


def arc(r, i):
    n = r.randrange(3, 6)
    labels = ["A", "B", "C", "D", "E"][:n] if r.random() < 0.7 else ["1", "2", "3", "4", "5"][:n]
    return {"id": f"x{i}", "question": phrase(r, 1).capitalize() + "?",
            "choices": {"text": [phrase(r, 1) for _ in range(n)], "label": labels}, "answerKey": r.choice(labels)}


ARC = [
    {"id": "a", "question": "Which food web begins at an orchard?",
     "choices": {"text": ["The one with light.", "None.", "A river's.", "7"], "label": ["A", "B", "C", "D"]}, "answerKey": "A"},
    {"id": "b", "question": "Numeric labels?", "choices": {"text": ["one", "two's", '"three"'], "label": ["1", "2", "3"]},
     "answerKey": "3"},
    {"id": "c", "question": "A line\nbreak, {{braces}} and 'quotes\"?",
     "choices": {"text": ["{{x}}", "a\\b", "c\td", "é", "日本"], "label": ["A", "B", "C", "D", "E"]}, "answerKey": "E"},
]


def obqa(r, i):
    row = arc(r, i)
    texts = [phrase(r, 1) for _ in range(4)]
    return {"id": row["id"], "question_stem": row["question"], "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
            "answerKey": r.choice(["A", " B", "C", "D"])}


OBQA = [{"id": "1", "question_stem": "A person who wants to save money should",
         "choices": {"text": ["call more", "stop eating out", "buy toys", "travel"], "label": ["A", "B", "C", "D"]},
         "answerKey": " B"}]


def boolq(r, i):
    return {"passage": phrase(r, 2) + ".", "question": "is " + phrase(r, 1), "idx": i, "label": r.randrange(2)}


BOOLQ = [
    {"passage": "Ferry -- A ferry is a boat that carries people.", "question": "is a ferry a boat", "idx": 0, "label": 1},
    {"passage": "P.", "question": "is it", "idx": 1, "label": 0},
]


def lambada(r, i):
    return {"text": phrase(r, 2) + " " + r.choice(NOUNS)}


LAMBADA = [
    {"text": "She took the lantern down.\n\n\"Light it,\" he said, \"or we shall never find the  lantern"},
    {"text": "word"},
    {"text": "two words"},
]


def sciq(r, i):
    return {"question": phrase(r, 1) + "?", "distractor1": "a", "distractor2": "bb", "distractor3": "c c",
            "correct_answer": r.choice(NOUNS), "support": phrase(r, 1) + "."}


SCIQ = [
    {"question": "What melts?", "distractor1": "stone", "distractor2": "Air", "distractor3": "iron", "correct_answer": "ice",
     "support": "\n Glaciers are ice."},
    {"question": "No support?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d", "support": ""},
]


def copa(r, i):
    return {"premise": phrase(r, 1).capitalize() + ".", "choice1": phrase(r, 1).capitalize(),
            "choice2": phrase(r, 1).capitalize(), "question": r.choice(["cause", "effect"]), "idx": i, "label": r.randrange(2)}


COPA = [
    {"premise": "The woman opened the gate. ", "choice1": "The sheep ran off.", "choice2": "Élan grew.", "question": "effect",
     "idx": 0, "label": 0},
    {"premise": "The kettle sang.", "choice1": "It boiled.", "choice2": "İt froze.", "question": "cause", "idx": 1, "label": 1},
]


def problem(r, blank=False):
    question = phrase(r, 1) + ("  _  ." if blank else "?")
    return {"question": question, "answer": r.choice("ABCD"), "options": [phrase(r, 1) for _ in range(4)]}


def race(r, i):
    return {"article": phrase(r, 1) + ".", "problems": repr([problem(r, r.random() < 0.5) for _ in range(r.randrange(1, 3))])}


RACE = [
    {"article": "There is little oil\nin the lamp.", "problems": repr([
        {"question": "From the text we know  _  .", "answer": "A", "options": ["oil", "gas", "coal", "wood"]},
        {"question": "What's \"best\"?", "answer": "C", "options": ["p", "q", "it's\n", "s"]},
        {"question": "The last one is", "answer": "D", "options": ["w1", "x2", "y3", "é4"]}])},
    {"article": "One.", "problems": repr([{"question": "Why _  .", "answer": "B", "options": ["a", "b", "c", "d"]}])},
    {"article": "Two.", "problems": repr([{"question": "Why _  .", "answer": "B", "options": ["a", "b", "c", "d"]},
                                          {"question": "How", "answer": "A", "options": ["a", "b", "c", "d"]}])},
]


def mmlu(subject):
    def make(r, i):
        return {"question": phrase(r, 1) + "?", "subject": subject, "choices": [r.choice(NOUNS) for _ in range(4)],
                "answer": r.randrange(4)}
    return make


PAGES = [
    " = Lantern <unk> = \n \n A lantern is a lamp , with a case . It cost 2 @,@ 000 coins ( it 's said ) ; \" The Lamp \" : yes ! "
    "It weighs 3 @.@ 5 . The boys ' dog [ x ] { y } N = = = Use = = = \n It was ' lit ' at 20 ° C . \n",
    "a ( b ( c ) d ) \" e ' f \" g ' h /' 5/ s ' N N = = = = x = = ? y ! \u00a0z\t( ) [ open",
    "word",
]

POOLS = {
    "baber/piqa": (PIQA, piqa), "Rowan/hellaswag": (HELLASWAG, hellaswag), "allenai/winogrande": (WINOGRANDE, winogrande),
    "allenai/ai2_arc": (ARC, arc), "allenai/openbookqa": (OBQA, obqa), "EleutherAI/lambada_openai": (LAMBADA, lambada),
    "cimec/lambada": (LAMBADA, lambada), "allenai/sciq": (SCIQ, sciq), "EleutherAI/race": (RACE, race),
}
# The splits that a task's files on the hub have, and how many examples each has; the evaluated split is the documents
# above with a few more. 30 is beyond the size at which `random.sample` changes its algorithm.
TRAIN, EXTRA = 30, 2


def splits(own, make, seed):
    evaluated = own + rows(make, EXTRA, seed)
    return {"train": rows(make, TRAIN, seed + 1), "validation": evaluated, "test": evaluated}


def load(path=None, name=None, **_):
    if path == "EleutherAI/wikitext_document_level":
        parts = {s: [{"page": p} for p in PAGES] for s in ("train", "validation", "test")}
    elif path == "cais/mmlu":
        parts = {"test": rows(mmlu(name), 3, 5), "validation": rows(mmlu(name), 3, 6), "dev": rows(mmlu(name), 5, 7)}
        parts["test"][0]["question"] = "\u001f Find the degree. \n"
    elif path == "aps/super_glue" and name == "boolq":
        parts = splits(BOOLQ, boolq, 20)
    elif path == "aps/super_glue":
        parts = splits(COPA, copa, 30)
        # A small pool that holds an item more than once, so that it is drawn again.
        parts["train"] = parts["validation"][:1] * 3 + parts["validation"][1:4] + rows(copa, 4, 31)
    else:
        own, make = POOLS[path]
        parts = splits(own, make, sum(map(ord, path)))
        # Answers of nothing, which only examples may have.
        if path == "allenai/winogrande":
            parts["train"] = [{"sentence": f"Only {i} is left: _", "option1": "a", "option2": "b", "answer": "2"}
                              for i in range(3)] + parts["train"][:3]
        if path == "Rowan/hellaswag":
            parts["train"] = [{**row, "endings": ["[title]"] * 4} for row in parts["train"][:3]] + parts["train"][3:6]
        if path == "cimec/lambada":
            parts["validation"] = rows(lambada, 30, 9)
        if path == "EleutherAI/race":
            del parts["train"], parts["validation"]
    return DatasetDict({split: Dataset.from_list(part) for split, part in parts.items()})


datasets.load_dataset = load
logging.disable(logging.WARNING)

from lm_eval import __version__, utils
from lm_eval.api import metrics
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

TASKS = ["arc_challenge", "arc_easy", "boolq", "copa", "hellaswag", "lambada_openai", "lambada_standard", "mmlu_anatomy",
         "mmlu_high_school_us_history", "mmlu_virology", "openbookqa", "piqa", "race", "sciq", "wikitext", "winogrande"]
SHOTS = (0, 1, 4)


def answers(r, n):
    """Made-up log-likelihoods; some equal, so that ties are in."""
    return [(-round(r.uniform(1, 12), r.choice([0, 3])), bool(r.getrandbits(1))) for _ in range(n)]


def requests_of_tasks():
    manager, out = TaskManager(), {}
    for name in TASKS:
        task = manager.load([name])["tasks"][name]
        own = list(task._metric_fn_list)
        fields = load(task.DATASET_PATH, task.DATASET_NAME)
        evaluated = "test" if task.has_test_docs() else "validation"
        drawn = {"mmlu": "dev", "lamb": "test", "race": "test"}.get(name[:4], "train")
        if name == "lambada_standard":
            drawn = "validation"
        record = {"version": task.VERSION, "metrics": own, "shots": {}, "docs": list(fields[evaluated])}
        if name != "wikitext":
            record["pool"] = list(fields[drawn])
        task.set_config("num_fewshot", 0)
        for shots in SHOTS if name != "wikitext" else (0,):
            task.set_config("num_fewshot", shots)
            task.set_fewshot_seed(1234)
            task.build_all_requests(limit=None, rank=0, world_size=1)
            by_doc = {}
            for instance in task.instances:
                by_doc.setdefault(instance.doc_id, []).append(instance)
            record["shots"][shots] = [[list(i.args) for i in by_doc[d]] for d in sorted(by_doc)]
            if shots > 0:
                continue
            # Every normalization, also where the task's file does not name it.
            if task.OUTPUT_TYPE == "multiple_choice":
                for metric in ("acc_norm", "acc_bytes"):
                    task._metric_fn_list.setdefault(metric, None)
            r, record["results"] = random.Random(11), []
            for doc_id in sorted(by_doc):
                instances = by_doc[doc_id]
                rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
                given = [-round(r.uniform(1, 900), 2)] if rolling else answers(r, len(instances))
                result = task.process_results(instances[0].doc, given)
                keep = {k: list(v) if rolling else float(v) for k, v in result.items()}
                record["results"].append({"answers": given, "metrics": keep})
        out[name] = record
    return out


class Encoding(TemplateLM):
    """lm-eval's own pairing on the built-in model's tokenizer; `tok_encode` is HFLM's rule, which needs torch."""

    backend = "causal"

    def __init__(self, tokenizer, add_bos_token):
        super().__init__()
        self.tokenizer, self.add_bos_token, self.seen = tokenizer, add_bos_token, None

    prefix_token_id = eot_token_id = property(lambda self: self.tokenizer.token_to_id("<s>"))

    def tok_encode(self, string, add_special_tokens=None, **_):
        special = self.add_bos_token if self.add_bos_token is not None else True
        if add_special_tokens is not None:
            special = add_special_tokens
        elif string.startswith("<s>"):
            special = False
        return self.tokenizer.encode(string, add_special_tokens=special).ids

    def _loglikelihood_tokens(self, requests, disable_tqdm=False):
        self.seen = requests
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests, disable_tqdm=False): ...
    def generate_until(self, requests, disable_tqdm=False): ...


class Pair:
    def __init__(self, *args):
        self.args = args


PAIRS = [
    ["Once upon a time", " there was a cat."], ["Once upon a time ", "there was"], ["a\n\n", " b"], ["The c", "at sat"],
    ["th", "e"], ["", " A dog"], ["", "<s> A dog"], ["<s>Tom", " ran"], ["Tom\u00a0", " ran"],
    ["Question: why?\nAnswer:", "  no"], ["Ünï", " çödé 日本"], ["<s>", " x"],
]
TEXTS = ["Once upon a time there was a little cat who liked to play in the sun.", "Hi", "<s>Tom ran home."]


def encodings(files):
    from tokenizers import Tokenizer

    out = {}
    for name, path in files.items():
        out[name] = {}
        for bos, add_bos in (("tokenizer", None), ("none", False)):
            model = Encoding(Tokenizer.from_file(str(path)), add_bos)
            model.loglikelihood([Pair(*pair) for pair in PAIRS], disable_tqdm=True)
            pairs = [[*pair, context, continuation] for pair, context, continuation in model.seen]
            rolling = []
            for text in TEXTS:
                for length in (4, 7, 512):
                    windows = utils.get_rolling_token_windows(
                        token_list=model.tok_encode(text), prefix_token=model.prefix_token_id, max_seq_len=length,
                        context_len=1)
                    rolling.append([text, length, list(map(utils.make_disjoint_window, windows))])
            out[name][bos] = {"pairs": pairs, "rolling": rolling}
    return out


def aggregates():
    r = random.Random(3)
    accuracies = [float(r.random() < 0.7) for _ in range(1267)]
    losses = [-r.expovariate(0.7) for _ in range(300)]
    weighted = [(-r.uniform(1, 500), r.randrange(1, 400)) for _ in range(62)]
    stderrs, sizes, values = [0.01, 0.02, 0.04], [100, 33, 7], [0.5, 0.25, 0.9]
    return {
        "accuracies": {"values": accuracies, "mean": metrics.mean(accuracies), "stderr": metrics.mean_stderr(accuracies)},
        "perplexity": {"values": losses, "perplexity": metrics.perplexity(losses),
                       "bootstrap": {d: float(metrics.bootstrap_stderr(metrics.perplexity, losses, d)) for d in (100, 3000)}},
        "weighted": {"values": weighted, "perplexity": metrics.weighted_perplexity(weighted),
                     "bits_per_byte": metrics.bits_per_byte(weighted)},
        "group": {"stderrs": stderrs, "sizes": sizes, "values": values,
                  "value": metrics.aggregate_subtask_metrics(values, sizes),
                  "stderr": float(metrics.pooled_sample_stderr(stderrs, sizes))},
    }


def python():
    seeds = []
    for seed in (0, 1, 1234, 2**32 - 1, 2**32, 2**40 + 12345):
        r = random.Random(seed)
        record = {"seed": seed, "random": [r.random() for _ in range(3)], "bits": [[k, r.getrandbits(k)] for k in (1, 7, 31, 32, 33, 53, 64)],
                  "randrange": [[n, r.randrange(n)] for n in (1, 2, 3, 10, 1000, 2**31, 339421)]}
        record["sample"] = [[n, k, r.sample(range(n), k)] for n, k in
                            ((5, 5), (20, 3), (21, 5), (22, 5), (100, 5), (85, 6), (86, 6), (1000, 25), (40, 0), (277, 64), (278, 64))]
        shuffled = list(range(50))
        r.shuffle(shuffled)
        record["shuffle"] = shuffled
        record["choices"] = r.choices(range(1000), k=8)
        record["far"] = [r.getrandbits(32) for _ in range(2000)][-3:]
        seeds.append(record)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    titles = [[c, c.capitalize()] for c in characters if c.capitalize() != c.upper()]
    texts = ["", "he Said McDonald", "ΟΔΟΣ ΣΑΣ", "İSTANBUL", "ǆABC", "ﬁSH", "ŉX", "ᾳΑ", "აბ", "1ABC", "\u0345A", "Σ"]
    return {"seeds": seeds, "spaces": [ord(c) for c in characters if c.isspace()],
            "titles": titles, "capitalized": [[t, t.capitalize()] for t in texts]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories260k", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "harness/tests/fixtures/tasks")
    given = parser.parse_args()
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizers = {"builtin": ROOT / "models/assets/tiny-llama/tokenizer.json"}
    if given.stories260k:
        tokenizers["stories260k"] = given.stories260k
    for name, value in (("tasks", {"lm_eval": __version__, "tasks": requests_of_tasks()}), ("encoding", encodings(tokenizers)),
                        ("metrics", aggregates()), ("python", python())):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        (out / f"{name}.json").write_text(text.replace("\u2028", "\\u2028") + "\n", encoding="utf-8")
    table = pyarrow.Table.from_pylist(ARC)
    pyarrow.parquet.write_table(table, out / "arc.parquet", compression="snappy")


main()
