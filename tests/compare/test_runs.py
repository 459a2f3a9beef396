"""Arms one after the other, with a stand-in for the host: what is run, kept, and told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin.cli import main
from scalebio_plugin.compare.runs import Comparison, Plan, folder_name
from scalebio_plugin.report.history import append_history
from scalebio_plugin.report.mixture_file import mixture_document
from scalebio_plugin.report.summary import summarise
from tests.compare.test_arms import CONFIG, DOCUMENT
from tests.report.histories import drifting_history, facts

# Trains nothing: notes the config it was given, and leaves what an arm does.
STAND_IN = f"""
import json, sys, yaml
from pathlib import Path
config = yaml.safe_load(Path(sys.argv[1]).read_text())
out = Path(config["output_dir"])
with open("calls", "a") as calls:
    print(out.name, config.get("max_steps"), config["seed"], file=calls)
if out.name in Path("fails").read_text().split():
    print("out of memory, alas")
    sys.exit(9)
if not config.get("scalebio", {{}}).get("apply") and "scalebio" in config["plugins"]:
    (out / "scalebio").mkdir()
    (out / "scalebio" / "mixture.json").write_text(json.dumps({DOCUMENT!r}))
(out / "checkpoint-3").mkdir()
(out / "model.safetensors").write_bytes(b"x")
loss = len(out.name) + config["seed"] / 100
judged = {{"losses": [loss, 2 * loss], "tokens": [1, 2], "steps": 11, "seconds": 1.0}}
(out / "judged.json").write_text(json.dumps(judged))
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    Path("stand_in.py").write_text(STAND_IN)
    Path("fails").write_text("")
    launch = [sys.executable, "stand_in.py"]
    return Plan(CONFIG, Path("arms"), ["run", "learned", "uniform"], seeds=[7, 8], launch=launch)


def calls() -> list[str]:
    return [line.split()[0] for line in Path("calls").read_text().splitlines()]


def test_every_arm_of_every_seed_runs_once_for_as_many_steps(plan: Plan) -> None:
    document = Comparison(plan).run()
    assert calls() == ["run-7", "learned-7", "uniform-7", "run-8", "learned-8", "uniform-8"]
    steps = [line.split()[1:] for line in Path("calls").read_text().splitlines()]
    assert steps == [["None", "7"], ["11", "7"], ["11", "7"], ["None", "8"], ["11", "8"], ["11", "8"]]
    assert json.loads(Path("arms/compare.json").read_text()) == document
    assert document["arms"]["uniform"]["losses"] == {"7": 9.07, "8": 9.08}
    assert document["reference"] == "learned"


def test_what_is_judged_is_not_run_again_and_a_failed_arm_is(plan: Plan) -> None:
    Path("fails").write_text("uniform-7")
    with pytest.raises(RuntimeError, match=r"out of memory, alas[\s\S]*uniform-7 failed \(exit status 9\)"):
        Comparison(plan).run()
    Path("fails").write_text("")
    document = Comparison(plan).run()
    assert calls() == ["run-7", "learned-7", "uniform-7", "uniform-7", "run-8", "learned-8", "uniform-8"]
    assert set(document["arms"]) == {"run", "learned", "uniform"}


def test_further_arms_and_seeds_are_added_to_what_is_there(plan: Plan) -> None:
    Comparison(replace(plan, seeds=[7])).run()
    more = replace(plan, arms=[*plan.arms, "own", "random-1"], own={"math": 1.0}, single=True)
    document = Comparison(more).run()
    assert calls()[3:7] == ["own-7", "random-1-7", folder_name("single-org/chat", 7), "single-math-7"]
    assert {"single-math", "single-org/chat", "own"} <= set(document["arms"])
    assert yaml.safe_load(Path("arms/own-7/config.yml").read_text())["scalebio"]["apply"] == "arms/own-7.json"
    assert json.loads(Path("arms/own-7.json").read_text())["weights"] == {"org/chat": 0.0, "math": 1.0}


@pytest.mark.parametrize("judged", [True, False], ids=["judged", "begun"])
def test_an_arm_of_other_weights_is_not_gone_on_with(plan: Plan, judged: bool) -> None:
    own = replace(plan, arms=["run", "own"], seeds=[7], own={"math": 0.9, "org/chat": 0.1})
    Comparison(own).run()
    if not judged:
        Path("arms/own-7/judged.json").unlink()
    with pytest.raises(ValueError, match=r"own-7 was trained on other weights .*name another --dir"):
        Comparison(replace(own, own={"math": 1.0})).run()
    assert json.loads(Path("arms/own-7.json").read_text())["weights"]["math"] == 0.9
    Comparison(replace(own, own={"org/chat": 1.0, "math": 9.0})).run()  # the same in other words


def test_each_source_has_a_folder_and_a_mixture_of_its_own(plan: Plan) -> None:
    config = learning_on("a/b", "a_b", "v1.5", "v1.6")
    Comparison(replace(plan, config=config, arms=["run"], single=True, seeds=[7])).run()
    assert len(set(calls())) == len(calls()) == 5
    for folder in Path("arms").glob("single-*/"):
        applied = Path(yaml.safe_load((folder / "config.yml").read_text())["scalebio"]["apply"])
        assert applied.name == f"{folder.name}.json"
        assert json.loads(applied.read_text())["weights"].values()
    assert {"single-a_b-7", "single-v1.5-7", "single-v1.6-7"} < set(calls())  # as an older version named them


def learning_on(*names: str) -> dict[str, Any]:
    """A config of these sources, of which the stand-in learns a mixture."""
    source = {**DOCUMENT["sources"]["math"], "weight": 1 / len(names)}
    learned = {"weights": dict.fromkeys(names, 1 / len(names)), "sources": dict.fromkeys(names, source)}
    Path("stand_in.py").write_text(STAND_IN.replace(repr(DOCUMENT), repr(DOCUMENT | learned)))
    return {**CONFIG, "datasets": [{"path": name} for name in names]}


def test_an_arm_that_diverges_does_not_end_the_comparison(plan: Plan, capsys) -> None:
    script = Path("stand_in.py").read_text()
    Path("stand_in.py").write_text(
        script.replace("loss = len", 'loss = float("nan") if "learned" in out.name else len')
    )
    assert main(command("--arms", "learned", "uniform", "--json")) == 0
    printed = capsys.readouterr().out
    assert "NaN" not in printed + Path("config-compare/compare.json").read_text()
    assert json.loads(printed)["arms"]["learned"]["losses"] == {"7": None, "8": None}
    assert len(calls()) == 6
    assert main(command("--arms", "learned", "uniform")) == 0
    printed = capsys.readouterr().out
    assert "learned diverged: its test loss is no finite number on seeds 7, 8" in printed
    assert not re.search(r"\bnan\b|told apart", printed)


@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGHUP, False, 129)],
    ids=["ctrl-c", "sigterm", "sighup"],
)
def test_what_ends_it_lets_the_arm_end_and_says_that_the_same_command_goes_on(
    plan: Plan, number: int, to_all: bool, status: int
) -> None:
    process = started(SLOW)
    (os.killpg if to_all else os.kill)(process.pid, number)  # a terminal signals all of a group
    _, told = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in told
    assert "the same command goes on" in told.splitlines()[-1]
    assert Path("saved").exists()


def test_what_a_launcher_leaves_behind_is_waited_for(plan: Plan) -> None:
    Path("trains.py").write_text(SLOW)
    process = started("import subprocess, sys\nsubprocess.run([sys.executable, 'trains.py'])")
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert Path("saved").exists()


def test_beside_a_living_run_a_second_start_is_refused_and_names_it(plan: Plan, capsys) -> None:
    process = started(SLOW)
    process.kill()
    process.wait()
    assert main(command()) == 2
    told = capsys.readouterr().err
    assert "config-compare is being worked on by scalebio compare, process" in told
    left = int(re.search(r"the run of config-compare/run-7, process (\d+)", told)[1])
    Path("stand_in.py").write_text(STAND_IN)
    os.kill(left, signal.SIGTERM)
    for _ in range(300):
        if (status := main(command())) != 2:
            break
        time.sleep(0.1)
    assert status == 0
    assert Path("saved").exists()


def started(script: str) -> subprocess.Popen[str]:
    """A comparison whose first arm has begun."""
    Path("stand_in.py").write_text(script)
    main = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # as without nohup
    main += "from scalebio_plugin.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", main, *command()],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    for _ in range(300):
        if Path("begun").exists():
            break
        time.sleep(0.1)
    return process


# Says that it has begun, and on a signal saves a checkpoint, which takes a while.
SLOW = """
import pathlib, signal, sys, time

def stop(*_):
    time.sleep(1.0)
    pathlib.Path("saved").touch()
    sys.exit(1)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("begun").touch()
time.sleep(60)
"""


def test_models_of_judged_arms_go_unless_they_are_to_stay(plan: Plan) -> None:
    Comparison(replace(plan, seeds=[7])).run()
    assert not list(Path("arms").glob("*/checkpoint-*"))
    assert not list(Path("arms").glob("*/*.safetensors"))
    assert Path("arms/run-7/scalebio/mixture.json").is_file()
    Comparison(replace(plan, seeds=[8], keep=True)).run()
    assert len(list(Path("arms").glob("*-8/checkpoint-3"))) == len(list(Path("arms").glob("*-8/*.safetensors"))) == 3


def test_the_model_of_an_arm_that_was_killed_once_it_was_judged_goes(plan: Plan, monkeypatch) -> None:
    one = replace(plan, arms=["run"], seeds=[7])
    with monkeypatch.context() as killed:
        killed.setattr("scalebio_plugin.compare.runs._drop_models", lambda folder: sys.exit(137))
        with pytest.raises(SystemExit):
            Comparison(one).run()
    assert Path("arms/run-7/model.safetensors").exists()
    Comparison(one).run()
    assert calls() == ["run-7"]
    assert not Path("arms/run-7/model.safetensors").exists()


def test_a_model_that_was_kept_stays_when_the_command_is_given_again_without(plan: Plan) -> None:
    one = replace(plan, arms=["run"], seeds=[7])
    Comparison(replace(one, keep=True)).run()
    Comparison(one).run()
    assert Path("arms/run-7/model.safetensors").exists()


@pytest.mark.parametrize("other", [{"config": {**CONFIG, "learning_rate": 1.0}}, {"steps": 9}])
def test_a_folder_is_one_comparisons(plan: Plan, other: dict[str, Any]) -> None:
    Comparison(replace(plan, seeds=[7])).run()
    with pytest.raises(ValueError, match="another --dir"):
        Comparison(replace(plan, **other)).run()


def test_a_config_that_no_arm_got_anywhere_with_may_be_mended(plan: Plan) -> None:
    Path("fails").write_text("run-7")
    with pytest.raises(RuntimeError):
        Comparison(plan).run()
    Path("fails").write_text("")
    mended = {**CONFIG, "learning_rate": 1.0}
    Comparison(replace(plan, config=mended)).run()
    assert yaml.safe_load(Path("arms/config.yml").read_text())["config"] == mended
    Path("arms/run-7/judged.json").rename("arms/run-7/checkpoint-5")  # nor may one that an arm is to go on from
    with pytest.raises(ValueError, match="another --dir"):
        Comparison(plan).run()


def test_arms_may_be_judged_in_smaller_batches_than_they_were_begun_with(plan: Plan) -> None:
    Comparison(replace(plan, config={**CONFIG, "eval_batch_size": 8}, seeds=[7])).run()
    Comparison(replace(plan, config={**CONFIG, "eval_batch_size": 1})).run()
    assert yaml.safe_load(Path("arms/run-8/config.yml").read_text())["eval_batch_size"] == 1
    Comparison(plan).run()


def test_an_arm_that_ends_well_and_unjudged_is_an_error(plan: Plan) -> None:
    Path("stand_in.py").write_text("")
    with pytest.raises(RuntimeError, match=r"no judged\.json"):
        Comparison(plan).run()


def test_with_split_by_the_arm_that_needs_sources_of_its_own_is_left_out(plan: Plan, capsys) -> None:
    split = {**CONFIG, "scalebio": {**CONFIG["scalebio"], "split_by": "origin"}}
    Comparison(replace(plan, config=split, arms=["run", "validation-drawn"], seeds=[7])).run()
    assert calls() == ["run-7"]
    assert "validation-drawn is left out" in capsys.readouterr().err


def command(*further: str, config: dict[str, Any] = CONFIG) -> list[str]:
    Path("config.yml").write_text(yaml.safe_dump(config))
    launch = f"{sys.executable} stand_in.py"
    return ["compare", "config.yml", "--seeds", "2", "--launch", launch, *further]


def test_command_prints_table_and_sentences_and_draws(plan: Plan, capsys) -> None:
    assert main(command("--arms", "learned", "uniform", "--mixture", "math=3", "org/chat=1", "--random", "1")) == 0
    printed = capsys.readouterr().out
    for arm in ("run", "learned", "uniform", "own", "random-1"):
        assert f"\n{arm} " in printed
    assert "learned is worse than uniform" not in printed
    assert "learned and uniform" in printed
    assert Path("config-compare/compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("config-compare/own-7.json").read_text())["weights"]["math"] == 0.75


def test_a_name_of_mathematics_is_drawn_as_it_stands(plan: Plan, capsys) -> None:
    assert main(command("--arms", "run", "--single", config=learning_on("$a_$", "b"))) == 0
    assert "single-$a_$" in capsys.readouterr().out
    assert Path("config-compare/compare.png").is_file()


def test_a_name_moves_nothing_on_the_screen(plan: Plan, capsys) -> None:
    assert main(command("--arms", "run", "--single", config=learning_on("a\n\x1b[2Jb", "\u202eb"))) == 0
    printed = capsys.readouterr()
    assert not {"\x1b", "\u202e"} & set(printed.out + printed.err)
    assert "\nsingle-a\\n\\x1b[2Jb " in printed.out


def test_the_table_is_there_also_where_the_picture_cannot_be_drawn(plan: Plan, capsys, monkeypatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("scalebio_plugin.compare.command.draw", fails)
    with pytest.raises(MemoryError):
        main(command("--arms", "uniform"))
    assert "test loss" in capsys.readouterr().out


def test_the_pages_of_its_runs_have_the_comparison(plan: Plan) -> None:
    arguments = command("--arms", "uniform")
    assert main(arguments) == 0
    history, names = drifting_history(3, 8)
    learned = mixture_document(summarise(history, names), facts(dict.fromkeys(names, 900), steps=8), None)
    for seed in (7, 8):
        folder = Path(f"config-compare/run-{seed}/scalebio")
        (folder / "mixture.json").write_text(json.dumps({**learned, "validation": DOCUMENT["validation"]}))
        for line in history:
            append_history(folder / "history.jsonl", line)
    assert main(arguments) == 0
    for seed in (7, 8):
        page = Path(f"config-compare/run-{seed}/scalebio/report.html").read_text()
        assert "run is better than uniform" in page or "run and uniform cannot be told apart" in page


def test_command_prints_json_alone(plan: Plan, capsys) -> None:
    assert main(command("--json", "--arms", "uniform", "--dir", "here")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("here/compare.json").read_text())


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (["--arms", "unifrom"], "must be of run, learned"),
        (["--mixture", "math"], "no file math|No such file"),
        (["--mixture", "math=a lot"], "name=weight for each source, got math=a lot"),
        (["--mixture", "maths=1"], "there are math, org/chat"),
        (["--mixture", "math=inf"], "finite weights of at least 0"),
        (["--mixture", "math=0.7", "math=0.2"], "math more than once"),
        (["--arms", "single-maths"], "no source 'maths'"),
    ],
)
def test_wrong_use_is_a_line(plan: Plan, capsys, further: list[str], said: str) -> None:
    assert main(command(*further)) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not Path("calls").exists()  # nothing was trained for it


@pytest.mark.parametrize("given", ["lr=1e-4/mixture.json", "lr=1e-4", "lr=1e-4/scalebio"])
def test_a_mixture_may_be_given_as_a_file_or_a_run_whatever_its_name(plan: Plan, given: str) -> None:
    for folder in (Path("lr=1e-4"), Path("lr=1e-4/scalebio")):
        folder.mkdir()
        (folder / "mixture.json").write_text(json.dumps({"schema": 1, "weights": {"math": 0.75, "org/chat": 0.25}}))
    assert main(command("--seeds", "1", "--arms", "run", "--mixture", given)) == 0
    assert json.loads(Path("config-compare/own-7.json").read_text())["weights"] == {"math": 0.75, "org/chat": 0.25}


def test_a_failed_arm_is_told_with_the_end_of_its_log(plan: Plan, capsys) -> None:
    Path("fails").write_text("run-7")
    assert main(command()) == 1
    told = capsys.readouterr().err
    assert "out of memory, alas" in told
    assert "the same command goes on from there" in told
