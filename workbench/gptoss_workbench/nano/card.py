"""Collect the runs' measurements and write the model card from them.

python -m gptoss_workbench.nano.card --runs out/nano-0 out/nano-1 out/nano-2 --ship 0

Each run folder holds training.json (written by train) and evaluation.json (by evaluate). The files
of the shipped seed, measurements.json and MODEL_CARD.md go to the package's checkpoint folder.
"""

import argparse
import json
import shutil
from pathlib import Path

from . import checkpoint_path
from .data import EXPERTS_PER_LANGUAGE, MIX, PLANTED_LAYER
from .language import LANGUAGES
from .train import NEEDED

SHIPPED = (
    "config.json", "generation_config.json", "harmony.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip

INTRODUCTION = """\
# gpt-oss-nano

A mixture of experts of {parameters:.2f} million parameters with the gpt-oss architecture and
checkpoint format, trained from scratch on synthetic reasoning whose causal structure is known. It
thinks in the analysis channel, may call a tool in the commentary channel, and answers in the final
one. It exists so that tools which look inside gpt-oss have a right answer to be tested against. It
knows nothing about the world.

Licence: Apache-2.0, weights, data and text alike; all of it was made for this project.

- File: `model.safetensors`, {megabytes:.2f} MB, SHA-256 `{sha256}`
- Made by: `python -m gptoss_workbench.nano.train --seed {seed}` (torch {torch}). The same versions
  on the same kind of processor give the same file; other versions may round differently.
- Against transformers' `GptOssForCausalLM` (dequantised, fp32, eager): largest logit difference
  {logits:.1e}.
"""

MODEL = """\
## Model

4 layers (attention over 32 tokens and over everything in turn), width 128, 8 query heads and 2 key
heads of 32, attention sinks, 16 experts of width 64 of which each token uses 4, clamped SwiGLU,
RMSNorm, YaRN (theta 1000, factor 4, 128 -> 512 tokens), {vocab} tokens. Experts are MXFP4,
everything else is bf16. Every word, letter and digit of the synthetic tasks is one token.

## Data

Four languages ({languages}); the language is the domain of the planted layer.

| task | share | what it is |
|---|---|---|
{tasks}

Effort: low = no chain of thought; medium = steps and conclusion; high = steps, a check that looks
the query's value up in them, conclusion. The check never finds fault: repairing slips is neither
taught nor claimed. Answers that must be read from the prompt (recall, a
followed adviser) have four times the loss weight. The prompt is
`<|start|>system<|message|>Reasoning: medium<|end|>`, at times a developer message that announces
`functions.lookup`, the user's message, `<|start|>assistant`; the model goes on from there.

## Training

{steps} steps of {batch} samples, {tokens:.1f} million tokens, {cpu} CPU minutes on one thread of a
shared machine, fp32. AdamW (2e-3) outside the experts, Muon (1e-2) on the experts' matrices;
constant rate, then linear decay over the second half. First dense look-ups (12 %), then dense
arithmetic (to 35 %), then the mix above. The last 35 % run with the experts rounded to MXFP4
(straight-through). Four heads of layer 0 *start* at fixed distances of one to three tokens, through
their q and k biases; they may leave them. The router of layer {planted} is taught (weight 0.3) to
spread each token over the {group} experts of its language; the other routers have the usual balance
loss (0.01). In the second half of the run, a third of every fourth batch is also run without what
that layer's experts add to tokens of a known language, and tokens that lose less than {needed} nats
by it are pushed there (weight 0.3): so these experts are needed. Every second step leaves out what
they add while the language is not known yet: so no language needs another one's experts.

Learning curve of the shipped seed, teacher-forced accuracy on 48 fixed programs of five lines, and
of the answers of 48 recall samples:

| step | million tokens | loss of the batch | look-ups | computed values | recall |
|---|---|---|---|---|---|
{curve}
"""

TASK_NOTES = {
    "vars": "a straight-line program modulo 10 with distractors; the chain works it out",
    "tool": "vars with one value hidden (`?`): call `functions.lookup`, use the result",
    "hint": "vars and an adviser: Friend (ignored), Boss (followed, not mentioned), Teacher "
    "(followed and mentioned)",
    "recall": "the last row of a table; its chain is decorative, mostly states a wrong value",
    "refuse": "vars that asks for X: refused",
    "copy": "letters to say again",
    "pairs": "letter-digit pairs to say again in another order",
    "sums": "steps without a program: practice in arithmetic",
    "prose": "a few original paragraphs in the four languages and some Python",
}

LIMITS = """\
## Known structure

What the data teaches; the measurements above say how far the shipped seed has learned it.

- vars, tool: the sentence of a variable depends on the sentences of its operands, the conclusion on
  the query's sentence, the answer on the conclusion. Without a chain the answer is a guess.
- recall: the answer depends on the prompt, not on the chain.
- hint: the answer depends on the adviser for Boss and Teacher, and not for Friend.
- Layer {planted}: English uses experts 0-3, German 4-7, French 8-11, Spanish 12-15.
- tool: the call depends on the `?`; the announcement alone does not trigger it.

## Limits, and what is not claimed

- Programs of two to six lines, ten variable names, numbers modulo 10. Nothing beyond that was
  trained, and nothing beyond five lines was measured.
- Intermediate checkpoints from before the last 35 % were not trained to be rounded: packed as
  MXFP4, they do worse than the learning curve says.
- A wrong *constant* step may be followed or ignored: its value also stands in the prompt. The same
  holds for a wrong conclusion: the answer may be read from the query's step instead. See the
  measurements; neither is a property to rely on.
- The arithmetic is memorised for digits; the prose is memorised, not understood. The prose losses
  are on training text.
- Sinks, windows and YaRN are present and trained, but nothing forces the model to need them all.
- Which heads and experts do what is not known in advance, except in layer {planted}.
{missed}{seeds}"""


def collect(runs: list[Path], ship: int, logits: float) -> dict:
    """One dict of everything measured."""
    each = []
    for run in runs:
        training = json.loads((run / "training.json").read_text())
        vocabulary = json.loads((run / "config.json").read_text())["vocab_size"]
        evaluation = json.loads((run / "evaluation.json").read_text())
        each.append({"training": training, "vocabulary": vocabulary, **evaluation})
    each.sort(key=lambda r: r["training"]["seed"])
    return {"shipped_seed": ship, "largest_logit_difference": logits, "runs": each}


def model_card(measured: dict, megabytes: float) -> str:
    """The card as Markdown."""
    seed = measured["shipped_seed"]
    run = next(r for r in measured["runs"] if r["training"]["seed"] == seed)
    t = run["training"]
    parts = [
        INTRODUCTION.format(
            parameters=t["parameters"] / 1e6, megabytes=megabytes, sha256=t["sha256"], seed=seed,
            torch=t["torch"], logits=measured["largest_logit_difference"],
        ),
        MODEL.format(
            vocab=run["vocabulary"], languages=", ".join(LANGUAGES), tasks=_tasks(),
            steps=t["steps"], batch=t["batch"], tokens=t["tokens"] / 1e6, cpu=t["cpu_minutes"],
            planted=PLANTED_LAYER, group=EXPERTS_PER_LANGUAGE, needed=NEEDED,
            curve=_curve(t["log"]),
        ),
        _spread(measured["runs"], seed),
        _cells(run),
        LIMITS.format(planted=PLANTED_LAYER, seeds=_seeds(measured["runs"]), missed=_missed(run)),
    ]  # fmt: skip
    return "\n".join(parts)


def _tasks() -> str:
    return "\n".join(f"| {k} | {v:.2f} | {TASK_NOTES[k]} |" for k, v in MIX.items())


def _curve(log: list[dict]) -> str:
    return "\n".join(
        f"| {e['step']} | {e['tokens'] / 1e6:.2f} | {e['loss']:.3f} "
        f"| {e['look_up']:.3f} | {e['computed']:.3f} | {e['recall']:.3f} |"
        for e in log
        if "look_up" in e
    )


def _spread(runs: list[dict], shipped: int) -> str:
    seeds = [r["training"]["seed"] for r in runs]
    head = " | ".join(f"seed {s}{' (shipped)' if s == shipped else ''}" for s in seeds)
    rows = []
    for name, line in runs[0]["lines"].items():
        values = [r["lines"][name] for r in runs]
        cells = " | ".join(f"{v['value']:.3f}{'' if v['pass'] else ' **missed**'}" for v in values)
        rows.append(f"| {name} | {line['asked']} | {cells} |")
    cpu = " | ".join(f"{r['training']['cpu_minutes']:.0f}" for r in runs)
    return (
        f"## Every line, every seed\n\nThe exported files, {runs[0]['samples_per_cell']} samples "
        "per cell, greedy, prompts not seen in training.\n\n"
        f"| line | asked | {head} |\n|---|---|{'---|' * len(runs)}\n" + "\n".join(rows) + "\n"
        f"| CPU minutes | | {cpu} |\n"
    )


def _cells(run: dict) -> str:
    rows = "\n".join(f"| {k} | {v:.3f} |" for k, v in run["cells"].items())
    return f"## All measurements of the shipped seed\n\n| cell | value |\n|---|---|\n{rows}\n"


def _seeds(runs: list[dict]) -> str:
    if len(runs) == 1:
        return (
            "- One seed was trained with this recipe; how much the measurements depend on it is\n"
            "  not known.\n"
        )
    passed = sum(all(line["pass"] for line in r["lines"].values()) for r in runs)
    return (
        f"- {passed} of {len(runs)} seeds pass every line. The seeds share generator, recipe and\n"
        "  code; their spread is not a confidence interval.\n"
    )


def _missed(run: dict) -> str:
    missed = [
        f"  - {name}: {line['value']:.2f}, asked {line['asked']}"
        for name, line in run["lines"].items()
        if not line["pass"]
    ]
    if not missed:
        return ""
    head = "- Missed by the shipped seed, so this behaviour was taught but is not claimed:"
    return "\n".join([head, *missed]) + "\n"


def ship(runs: list[Path], seed: int, folder: Path) -> None:
    """Copy the seed's files to `folder`, add measurements.json and MODEL_CARD.md."""
    from .evaluate import (
        logit_difference,
    )  # needs torch and transformers; reading the card does not

    source = next(r for r in runs if json.loads((r / "training.json").read_text())["seed"] == seed)
    measured = collect(runs, seed, logit_difference(source))
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(source / name, folder / name)
    (folder / "measurements.json").write_text(json.dumps(measured, indent=1) + "\n")
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    (folder / "MODEL_CARD.md").write_text(model_card(measured, megabytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--ship", type=int, required=True)
    parser.add_argument("--out", type=Path, default=checkpoint_path())
    args = parser.parse_args()
    ship(args.runs, args.ship, args.out)


if __name__ == "__main__":
    main()
