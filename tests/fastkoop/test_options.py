"""Options: defaults, one form for equals, words there and back, and every refusal."""

import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

import fastkoop as fk
from fastkoop.adapter.phase import KoopmanPhase
from fastkoop.options import Options, parse, word

OPTIONS = (
    Options(),
    Options("svht", fk.Affine(), "clip"),
    Options(fk.Rank(3), (fk.Delay(3), fk.Affine()), 0.875, "carry"),
    Options(fk.Energy(0.99), fk.Momentum(), None, "drop", window=4, every=10),
    Options(0.01, (fk.Delay(2), fk.Affine(), fk.Momentum()), 2.0, "carry", window=5),
    Options(stabilize="project"),
)


def test_defaults_are_those_of_fit_and_of_a_phase():
    import inspect

    usual = Options().fit_arguments | {"observables": "identity"}
    parameters = inspect.signature(fk.fit).parameters
    assert {name: parameters[name].default for name in usual} == usual
    phase = KoopmanPhase(torch.nn.Linear(2, 1))
    assert (phase.fits.options, phase.every, phase.window) == (Options(), 1, 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_words_are_read_back(options):
    assert Options.read(options.words()) == options
    assert Options.read(**{name: str(text) for name, text in options.describe().items()}) == options
    assert all(isinstance(text, str) for text in options.words().values())
    for name, value in options.phase_arguments.items():
        assert word(name, parse(name, word(name, value))) == word(name, value)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_copies_are_equal(options):
    assert pickle.loads(pickle.dumps(options)) == options == replace(options) == Options(**options.phase_arguments)
    assert len({options, replace(options)}) == 1
    with pytest.raises(FrozenInstanceError):
        options.cutoff = 0.5


def test_equals_have_one_form():
    assert Options(stabilize="clip") == Options(stabilize=1) == Options(stabilize=np.int64(1))
    assert Options(observables=(fk.Affine(), fk.Delay(2))) == Options(observables=[fk.Delay(2), fk.Affine()])
    assert Options(cutoff=np.float64(0.5)) == Options(cutoff=0.5)
    assert Options(window=3) == Options(window=3, every=3)
    assert Options(cutoff=fk.Rank(np.int64(2)), every=np.int32(2)) == Options(cutoff=fk.Rank(2), every=2)


def test_captions_say_what_is_not_usual():
    assert str(Options()) == "defaults"
    assert str(OPTIONS[2]) == "cutoff rank:3, observables delay:3+affine, stabilize 0.875, out_of_span carry"
    assert str(Options(every=4)) == "every 4" and str(Options(window=4)) == "window 4"
    assert Options(stabilize="clip", cutoff=fk.Rank(1)).describe() == {
        "cutoff": "Rank(k=1)", "observables": "identity", "stabilize": "clip", "out_of_span": "drop", "window": 1,
        "every": 1,
    }  # fmt: skip
    assert [field.name for field in fields(Options)] == list(Options().describe())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cutoff": "rank:x"}, r"cutoff: expected one of 'array_api'.* got 'rank:x'"),
        ({"cutoff": "rank:0"}, r"Rank\(k\): expected an integer >= 1"),
        ({"cutoff": "energy:1.5"}, r"Energy\(share\): expected 0 < share <= 1"),
        ({"cutoff": "nan"}, r"cutoff: expected a .*number"),
        ({"observables": "affine+affine"}, r"observables: expected at least one, and each kind once"),
        ({"observables": "fourier"}, r"observables: expected .identity., Affine"),
        ({"stabilize": "maybe"}, r"stabilize: expected one of 'clip', 'project'"),
        ({"stabilize": "-1"}, r"stabilize: expected a radius > 0"),
        ({"stabilize": "project", "observables": "delay:2"}, r"stabilize: \"project\" would hold Delay\(2\) back"),
        ({"out_of_span": "keep"}, r"out_of_span: expected one of 'drop', 'carry'"),
        ({"window": "two"}, r"window: expected an integer, got 'two'"),
        ({"window": "0"}, r"window: expected an integer >= 1"),
        ({"window": "5", "every": "4"}, r"window: expected at most every=4 iterates, got 5"),
        ({"rank": "3"}, r"option: expected one of 'cutoff'"),
    ],
    ids=str,
)
def test_refused(words, message):
    with pytest.raises(fk.InputError, match=message):
        Options.read(words)
