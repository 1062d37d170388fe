"""spaCy's training loop, with optimizers of thinc's registry."""

from __future__ import annotations

import numpy as np
import spacy
import thinc.optimizers as theirs
from spacy.training import Example
from spacy.util import load_config_from_str

import fastgd.thinc as ours

TEXTS = [("good fine great", 1.0), ("bad awful poor", 0.0), ("fine good", 1.0), ("poor bad", 0.0)]


def losses(optimizer):
    """Of a text classifier, from update to update."""
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("textcat")
    examples = [
        Example.from_dict(nlp.make_doc(text), {"cats": {"yes": yes, "no": 1 - yes}})
        for text, yes in TEXTS
    ]
    nlp.initialize(lambda: examples, sgd=optimizer)
    found = [nlp.update(examples, sgd=optimizer)["textcat"] for _ in range(15)]
    with nlp.use_params(optimizer.averages):
        assert nlp("good").cats["yes"] > nlp("bad").cats["yes"]
    return found


def test_a_pipeline_learns_as_with_thinc():
    a, b = losses(theirs.Adam(0.01)), losses(ours.Adam(0.01))
    assert b[-1] < 0.1 * b[0]
    assert np.allclose(a, b, rtol=0.05, atol=1e-3)


def test_a_training_config_names_it():
    nlp = spacy.blank("en")
    config = nlp.config.to_str().replace("Adam.v1", "fastgd.Adam.v1")
    assert "fastgd.Adam.v1" in config
    config = load_config_from_str(config).interpolate()
    made = spacy.util.registry.resolve(
        config["training"], schema=spacy.schemas.ConfigSchemaTraining
    )
    assert isinstance(made["optimizer"], ours.Optimizer)
