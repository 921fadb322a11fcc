"""The race's arithmetic: bits per byte, equal parameters, what fits into the seconds, cells that are not run again."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config
from pretrain.command_line import parse
from tests.pretrain.conftest import ROOT, TINY

TEXT = "ab书a" * 3
"""12 characters, 18 bytes."""
IDS = {"<s>": 0, "a": 1, "b": 2, "书": 3}
LENGTH = 5


def module(name: str) -> ModuleType:
    """One of the benchmark's files, which import each other by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    return module("time_to_quality_runs")


@pytest.fixture(scope="module")
def race() -> ModuleType:
    return module("time_to_quality")


class Characters:
    """A tokenizer of four pieces."""

    bos_token_id, eos_token_id = 0, None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [IDS[character] for character in text]


class Table:
    """A model whose logits depend on the input token and on its position in the window: table [S, V, V]."""

    def __init__(self, length: int) -> None:
        self.table_SVV = torch.randn(length, len(IDS), len(IDS), generator=torch.Generator().manual_seed(0))
        self.most = 0

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        positions_S = torch.arange(input_ids.shape[1])
        self.most = max(self.most, input_ids.shape[1])
        return SimpleNamespace(logits=self.table_SVV[positions_S, input_ids])

    def nats(self, position: int, before: int, token: int) -> float:
        return float(-torch.log_softmax(self.table_SVV[position, before].double(), dim=0)[token])


def test_bits_per_byte_is_the_definition(runs):
    """Windows of LENGTH predictions, each beginning with the token before; bytes of the text, not characters."""
    model, total = Table(LENGTH), 0.0
    texts = [TEXT, "b"]
    for text in texts:
        before = IDS["<s>"]
        for number, character in enumerate(text):
            total += model.nats(number % LENGTH, before, IDS[character])
            before = IDS[character]
    found = runs.bits_per_byte(model, Characters(), texts, LENGTH)
    assert found == pytest.approx(total / math.log(2) / 19, rel=1e-5)
    assert model.most == LENGTH, "no window is longer than the training length"
    longer = runs.bits_per_byte(Table(len(TEXT)), Characters(), texts, len(TEXT))
    assert longer != pytest.approx(found, rel=1e-3), "where windows begin matters to this model"


def test_windows_predict_every_token_once(runs):
    pieces = list(runs.windows(Characters(), TEXT, LENGTH))
    assert [len(piece) - 1 for piece in pieces] == [5, 5, 2]
    assert [token for piece in pieces for token in piece[1:]] == [IDS[character] for character in TEXT]
    assert [piece[0] for piece in pieces] == [0, pieces[0][-1], pieces[1][-1]]
    assert list(runs.windows(Characters(), "", LENGTH)) == []


def test_held_out_documents_are_whole_and_limited(race):
    texts = [f"{number:02}书" for number in range(40)]
    chosen = race.held_out({"zh": texts, "en": ["long enough alone"]}, limit=12)
    assert set(chosen["zh"]) < set(texts) and len(chosen["zh"]) == 3  # 5 bytes each
    assert chosen["en"] == ["long enough alone"]
    assert chosen == race.held_out({"zh": texts, "en": ["long enough alone"]}, limit=12)


@pytest.mark.parametrize("size", ["1m", "4m", "10m"])
def test_the_other_model_has_as_many_parameters(size):
    trainer = module("llama_trainer")
    shape = load_model_config(ROOT / "configs" / "pangu_pi" / "models" / f"pangu_pi_{size}.yaml", {"vocab_size": 6144})
    ours = count_parameters(shape).total
    fields = trainer.equal_llama(shape, ours)
    theirs = trainer.count(trainer.LlamaConfig(**fields))
    assert abs(theirs - ours) <= 0.005 * ours
    assert fields["intermediate_size"] % 8 == 0 and fields["tie_word_embeddings"] == shape.tie_word_embeddings
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PanguPiForCausalLM(shape).parameters()) == ours
    with pytest.raises(ValueError, match=f"no LLaMA of {shape.num_hidden_layers} layers"):
        trainer.equal_llama(shape, ours // 100)


def test_blocks_are_the_stream_without_its_rest(tmp_path):
    trainer = module("llama_trainer")
    trainer.write_blocks([np.arange(7), np.arange(10, 13)], 3, tmp_path / "blocks.npy")
    blocks = trainer.Blocks(str(tmp_path / "blocks.npy"))
    assert [blocks[index]["input_ids"].tolist() for index in range(len(blocks))] == [[0, 1, 2], [3, 4, 5], [10, 11, 12]]
    with pytest.raises(ValueError, match="2 token streams"):
        trainer.write_blocks([np.arange(2), np.arange(1)], 3, tmp_path / "none.npy")


def test_the_trainer_leaves_checkpoints_that_are_scored_as_transformers_would(runs, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    trainer = module("llama_trainer")
    shape = load_model_config({**TINY, "vocab_size": len(IDS)})
    fields = trainer.equal_llama(shape, count_parameters(shape).total)
    trainer.write_blocks([torch.randint(len(IDS), (200,)).numpy()], LENGTH, tmp_path / "blocks.npy")
    arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 4, "save_steps": 2, "seed": 3, "use_cpu": True,
                 "per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True}  # fmt: skip
    description = tmp_path / "run.json"
    description.write_text(json.dumps(trainer.run_description(fields, tmp_path / "blocks.npy", arguments)))
    monkeypatch.setattr(sys, "argv", ["llama_trainer.py", str(description)])
    trainer.main()
    AcceleratorState._reset_state(reset_partial_state=True)  # what the Trainer set for the whole process

    found = runs.Theirs.checkpoints(None, tmp_path)
    assert sorted(found) == [2, 4]
    monkeypatch.setattr(runs, "load_tokenizer", lambda _: Characters())
    scores = [runs.score(found[step][0], tmp_path, {"en": [TEXT]}, LENGTH)["en"] for step in (2, 4)]
    plain = trainer.LlamaForCausalLM.from_pretrained(found[4][0]).eval()
    assert scores[1] == pytest.approx(runs.bits_per_byte(plain, Characters(), [TEXT], LENGTH), rel=1e-6)
    assert scores[0] != scores[1]


def stamps(steps: int, first: float, step: float, save: float, every: int) -> list[float]:
    """When steps end: the first after `first` seconds, and after a checkpoint `save` later."""
    times = [first]
    for number in range(2, steps + 1):
        times.append(times[-1] + step + (save if (number - 1) % every == 0 else 0.0))
    return times


def test_pace_tells_start_step_and_checkpoint_apart(runs):
    times = stamps(16, first=30.0, step=0.5, save=2.0, every=5)
    pace = runs.Pace.measured(times[:-1], wall=times[-1] + 4.0, steps=16, every=5)
    assert (pace.start, pace.step, pace.save) == pytest.approx((33.5, 0.5, 2.0))  # 4 s to leave, 0.5 s are a step
    assert pace.steps(100.0) == 116  # (100 - 33.5 - 8) / 0.5 = 117, a multiple of 4
    assert pace.steps(43.0) == 0


class Scripted:
    """A contender whose start takes longer where the run is to be long; nothing is launched."""

    def __init__(self, chooses_by_length: bool, start: dict[bool, float]) -> None:
        self.chooses_by_length, self.start, self.told, self.ranks = chooses_by_length, start, [], 1

    def command(self, folder, steps, every, calibrating):
        assert calibrating
        (folder / "run").mkdir()
        self.told.append(steps)
        return []

    def stamps(self, folder):
        return stamps(16, self.start[self.told[-1] > 50], 1.0, 0.0, 5)


@pytest.mark.parametrize(
    ("chooses", "start", "told", "steps"),
    [
        (False, {False: 1.0, True: 1.0}, [17], 96),  # nothing depends on the length: once is enough
        (True, {False: 1.0, True: 17.0}, [17, 96], 80),  # long enough both times, and the start is paid for
        (True, {False: 1.0, True: 61.0}, [17, 96, 36], 36),  # they never agree: no more than was measured
    ],
)
def test_calibration_finds_the_length_that_it_was_told(runs, tmp_path, monkeypatch, chooses, start, told, steps):
    racer = Scripted(chooses, start)
    monkeypatch.setattr(runs, "launch", lambda *_: (0.0, racer.stamps(None)[-1]))
    _, found = runs.calibrate(racer, tmp_path / "calibration", 96.0)
    assert (racer.told, found) == (told, steps)
    assert not (tmp_path / "calibration" / "run").exists()
    with pytest.raises(ValueError, match="2 s are not enough"):
        runs.calibrate(racer, tmp_path / "calibration", 2.0)


def result(cell, bits: float) -> dict:
    points = [{"step": step, "seconds": step / 10, "bits_per_byte": {"en": bits, "zh": bits + 1 / step}}
              for step in (25, 50, 75, 100)]  # fmt: skip
    return {"cell": cell.name, "contender": cell.contender, "size": cell.size, "parameters": 5, "steps": 100,
            "points": points, "took": 400.0, "identity": {}}  # fmt: skip


def test_cells_that_are_done_are_not_run_again(race, tmp_path, monkeypatch, capsys):
    options = race.parse_options(["--size", "1m", "--seeds", "1", "2", "--rates", "default", "--output", str(tmp_path)])
    contest, ran = race.Race(options), []
    assert [cell.name for cell in contest.cells] == [
        f"{name}/1m/300s/v6144/seed{seed}" for seed in (1, 2) for name in ("ours", "transformers-default-linear")
    ]
    monkeypatch.setattr(race.Race, "racer", lambda self, cell: SimpleNamespace(identity=lambda: {"rate": 1e-3}))

    def run(self, cell, guess):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(cell)
        made = result(cell, 1.5 if cell.contender == "ours" else 2.0) | {
            "identity": self.identity(cell, self.racer(cell))
        }
        self.file(cell).parent.mkdir(parents=True)
        self.file(cell).write_text(json.dumps(made))
        return made

    monkeypatch.setattr(race.Race, "run", run)
    with pytest.raises(KeyboardInterrupt):
        contest.run_all()
    assert ran == contest.cells[:3]
    ran.clear()
    results = race.Race(options).run_all()
    assert ran == contest.cells[3:] and list(results) == contest.cells
    capsys.readouterr()

    made = race.tables(results)["1m, 300 s"]
    assert made["margin"]["mean"] == pytest.approx(0.5)
    assert "ours is 0.500 (0.500 to 0.500) below transformers-default-linear" in capsys.readouterr().out
    also = [{"name": "another", "size": "1m", "points": [{"seconds": 9.0, "bits_per_byte": {"en": 1.0, "zh": 1.0}}]}]
    curves = [{"name": each["contender"], "size": each["size"], "points": each["points"]} for each in results.values()]
    race.draw([*curves, *also], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    other = race.Race(race.parse_options(["--size", "1m", "--valid_bytes", "5", "--output", str(tmp_path)]))
    with pytest.raises(ValueError, match=r"(?s)cell\.json: was measured with other settings.*valid_bytes"):
        other.run_all()


@pytest.mark.parametrize("text", ['{"cell": "ours', "[]", "{}"])
def test_a_broken_result_is_named_with_what_to_do(race, tmp_path, monkeypatch, capsys, text):
    words = ["--size", "1m", "--seeds", "1", "--only", "ours/*", "--output", str(tmp_path)]
    contest = race.Race(race.parse_options(words))
    file = contest.file(contest.cells[0])
    file.parent.mkdir(parents=True)
    file.write_text(text)
    monkeypatch.setattr(race.Race, "racer", lambda self, cell: SimpleNamespace(identity=dict))
    monkeypatch.setattr(sys, "argv", ["x", *words])
    with pytest.raises(SystemExit) as ended:
        race.main()
    assert str(file) in ended.value.code and "; remove the file, and the cell is run again" in ended.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "1m", "7m"], "there is no configs/pangu_pi/models/pangu_pi_7m.yaml"),
        (["--rates", "fast"], "--rates fast: it must be a number above 0, or default"),
        (["--rates", "-1"], "--rates -1"),
        (["--seconds", "0"], "--seconds 0: it must be a number above 0"),
        (["--ours", "optimizer.lr"], "--ours optimizer.lr: it must be NAME=VALUE"),
        (["--ranks", "0"], "--ranks 0: it must be at least 1"),
        (["--only", "nothing"], "--only nothing: no cell has such a name"),
    ],
)
def test_a_race_that_cannot_be_run_ends_before_it_begins(race, capsys, words, said):
    with pytest.raises(SystemExit):
        race.parse_options(words)
    assert said in capsys.readouterr().err


def test_further_curves_are_read_before_anything_is_run(race, tmp_path, monkeypatch):
    (tmp_path / "also.json").write_text('[{"name": "another", "size": "1m", "points": [{"seconds": 1}]}]')
    monkeypatch.setattr(race.Race, "run_all", lambda self: pytest.fail("it has begun"))
    for file, said in (("also.json", "not a list of curves as --help shows one"), ("none.json", "none.json")):
        monkeypatch.setattr(sys, "argv", ["x", "--also", str(tmp_path / file), "--output", str(tmp_path)])
        with pytest.raises(SystemExit, match=said):
            race.main()


def test_what_is_left_is_listed_without_making_anything(race, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--dry_run", "--only", "*3e-3*/4m/*", "--output", str(tmp_path / "new")])
    race.main()
    out = capsys.readouterr().out
    assert out.count("transformers-3e-3-linear/4m/300s/v6144/seed") == 3 and "3 of 3 cells" in out
    assert not (tmp_path / "new").exists()


def test_options_of_the_others_are_read_as_numbers_where_they_are(race):
    options = race.parse_options(["--rates", "default", "3e-4", "--theirs", "weight_decay=0.1", "optim=adamw_torch"])
    plain, other = race.peers(options).values()
    assert plain == {"weight_decay": 0.1, "optim": "adamw_torch", "lr_scheduler_type": "linear"}
    assert other == plain | {"learning_rate": 3e-4}


def test_both_train_on_the_recipes_batch_length_and_warm_up(runs, tmp_path):
    """Nothing of the recipe stands in the benchmark; overrides of one side reach that side."""
    shape = ROOT / "configs" / "pangu_pi" / "models" / "pangu_pi_1m.yaml"
    data = runs.Data(tmp_path, (tmp_path / "train.en",), 512)
    given = ["batch.size=32", "batch.micro_size=4", "schedule.warmup_steps=50", "steps=200"]
    recipe = runs.Recipe.resolve(ROOT / "configs" / "pangu_pi" / "runs" / "quickstart.yaml", shape, data, given)
    assert recipe.shape.vocab_size == 512 and recipe.warmup_fraction == 0.25
    ours = runs.Ours(recipe, data, seed=7, ranks=2)
    assert (ours.samples(3), ours.parameters) == (96, count_parameters(recipe.shape).total)
    command = ours.command(tmp_path, 80, 20, calibrating=False)
    assert Path(command[0]).name == "deepspeed" and "--hooks" not in command
    again, _ = parse(command[command.index("--config") :])
    assert (again.steps, again.checkpoint.every, again.seed, again.batch.size) == (80, 20, 7, 32)
    assert again.task.valid == {}
    identity = json.dumps(ours.identity())
    assert str(ROOT) not in identity and str(tmp_path) not in identity  # moved folders keep their cells

    theirs = runs.Theirs(recipe, data, seed=7, ranks=2, blocks=tmp_path / "blocks.npy", arguments={"max_grad_norm": 2})
    assert theirs.samples(3) == 96 and abs(theirs.parameters - ours.parameters) <= 0.02 * ours.parameters
    theirs.command(tmp_path, 80, 20, calibrating=True)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["stop_after"] == runs.CALIBRATION_STEPS
    wanted = {"warmup_steps": 20, "max_steps": 80, "save_steps": 20, "seed": 7, "max_grad_norm": 2}
    assert run["arguments"].items() >= wanted.items() and "learning_rate" not in run["arguments"]
    alone = runs.Theirs(recipe, data, 7, 1, blocks=tmp_path, arguments={"per_device_train_batch_size": 1})
    assert alone.samples(1) == 8 and runs.Ours(recipe, data, 7, 1).command(tmp_path, 80, 20, True)[0] == sys.executable
