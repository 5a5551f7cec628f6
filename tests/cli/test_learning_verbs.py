"""learn as a user meets it, on the bundled digits, and its sections in the report."""

import html
import json
import re
import shlex

import pytest

FLAGS = ("--data", "digits", "--subset", "100", "--epochs", "2")


@pytest.fixture
def learnt(fmcefast):
    """A command line in whose folder runs/digits has results of all four verbs."""
    for verb, *flags in (
        ("cache", "--seeds", "2", "--batch-size", "20,40", "--arms", "plain,cache,plain-time"),
        ("fgsm", "--seeds", "2", "--layer", "maps2", "--epsilons", "0,0.1"),
        ("explore", "--images", "12", "--farthest", "2"),
    ):
        code, out, err = fmcefast("learn", verb, *FLAGS, *flags)
        assert code == 0, err
        assert out.startswith(f"learn {verb}: small-cnn on digits")
    return fmcefast


def test_all_of_it_is_told_on_one_offline_page(learnt, tmp_path):
    assert learnt("report", "runs/digits")[0] == 0
    page = (tmp_path / "runs/digits/report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page) and page.count('<img src="data:image/') == 9
    for title in (
        "Skipping what is explained already", "Batches of 40", "Accuracy by batch size", "Training on feature maps",
        "Images that mislead", "The images themselves",
    ):  # fmt: skip
        assert title in page
    for title in ("Convergence</h2>", "FMCE-Net</h2>", "demonstration"):
        assert title not in page
    page = page[page.index("How it was made</h2>") :]
    command = re.search(r"fmcefast learn cache runs/digits .*", page).group()
    assert "--batch-size 20,40" in command and "--seeds 2" in command
    commands = [html.unescape(each) for each in re.findall(r"fmcefast learn \w+ runs/digits .*", page)]
    assert len(commands) == 4
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/digits/learn").rglob("*-seed-*")}
    for command in commands:
        code, _, err = learnt(*shlex.split(command.removesuffix("</pre>"))[1:])
        assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_verify_finds_what_is_damaged(learnt, tmp_path):
    code, out, err = learnt("verify", "runs/digits")
    assert code == 0 and "nothing wrong" in out, err
    folder = tmp_path / "runs/digits/learn"
    damaged = (
        "cache.json",
        "cache/plain-seed-0-batch-20.json",
        "features/maps2-seed-1.safetensors",
        "explore/tsne.npy",
    )
    for name in damaged:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-20])
    code, out, _ = learnt("verify", "runs/digits")
    assert code == 1 and f"{len(damaged)} wrong" in out
    for name in damaged:
        assert name in out


def test_json_is_one_object_and_a_second_call_returns_the_same(fmcefast):
    flags = ("learn", "cache", "runs/mine", *FLAGS, "--seeds", "1", "--arms", "plain,cache", "--json")
    code, out, _ = fmcefast(*flags)
    first = json.loads(out, parse_constant=lambda constant: pytest.fail(constant))
    assert code == 0 and [arm["arm"] for arm in first["arms"]] == ["plain", "cache"]
    assert first["run"] == "runs/mine" and first["layers"] == ["maps1"]
    assert json.loads(fmcefast(*flags)[1]) == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cash",), "Unknown command 'cash'. Did you mean 'cache'?"),
        (("cache", "--layer", "map1"), "Unknown layer 'map1'. Did you mean 'maps1'?"),
        (("cache", "--layer", "head"), "The layer 'head' puts out a tensor (2, 10), not a feature map"),
        (("cache", "--arms", "plain,random"), "The arm 'random' follows 'cache': name that one too."),
        (("cache", "--batch-size", "32,x"), "--batch-size takes numbers with commas between them, not '32,x'."),
        (("cache", "--skip", "1"), "--skip must lie in 0..1, below 1, not 1.0."),
        (("features", "--epochs", "0"), "--epochs must be at least 1, not 0."),
        (("features", "--backbone", "resnet19"), "Unknown backbone 'resnet19'. Did you mean 'resnet18'?"),
        (("fgsm", "--epsilons", "2"), "An epsilon is the change of a pixel in 0..1, not 2.0."),
        (("explore", "--farthest", "0"), "--farthest must be at least 1, not 0."),
        (("cache", "--data", "digit"), "Unknown data set 'digit'. Did you mean 'digits'?"),
    ],
)
def test_bad_input_is_named(fmcefast, words, message):
    code, out, err = fmcefast("learn", *words)
    assert (code, out) == (2, "") and message in err


def test_a_run_about_other_images_is_not_touched(fmcefast, tmp_path):
    assert fmcefast("learn", "explore", "mine", *FLAGS, "--images", "12")[0] == 0
    before = (tmp_path / "mine/config.yaml").read_text()
    code, _, err = fmcefast("learn", "explore", "mine", "--data", "mnist", "--images", "12")
    assert code == 2 and "mine is about other images: data was digits, now mnist" in err
    assert (tmp_path / "mine/config.yaml").read_text() == before
    code, _, err = fmcefast("learn", "explore", "mine", "--epochs", "3", "--images", "12")
    assert code == 2 and "explore.json was made with other settings: epochs was 2, now 3. Give --force" in err


def test_help_without_a_verb(fmcefast):
    code, out, _ = fmcefast("learn")
    assert code == 0 and "cache" in out and "explore" in out


def test_an_interruption_says_how_to_go_on(fmcefast, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fmcefast.learning.cache_experiment.train_network", interrupt)
    code, out, err = fmcefast("learn", "cache", "mine", *FLAGS)
    assert (code, out) == (1, "")
    assert "Interrupted. mine keeps what is finished. Continue: fmcefast learn cache mine --data digits" in err
