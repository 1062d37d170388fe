"""Learns what Python's words mean from Python's own documentation: skip-gram with rows.

    python examples/word_vectors.py --plot words.png        the plot needs matplotlib

A word's vector learns to tell the words that stand near it from words drawn at random (skip-gram
with negative sampling).  Each batch touches some of the rows of two tables, and these alone are
stepped: the gradients are `fastgd.Rows`, with a row for every pair of words, repeated words and
all.  The text is what every Python brings along: `help()`'s topics, and the docstrings of the
standard library.

Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed representations of words and phrases and
their compositionality", 2013.
"""

import argparse
import ast
import builtins
import inspect
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
from pydoc_data.topics import topics

import fastgd

SIZE, BATCH, WINDOW, NEGATIVES, RATE = 64, 8192, 5, 5, 0.2
DRAWN = 128  # words drawn at random that all pairs of a batch share
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "turtledemo"}
ASKED = "list dict class string exception file thread import loop integer".split()


def documents():
    """Topics and docstrings, without a module being imported for it."""
    yield from topics.values()
    for thing in vars(builtins).values():
        for one in (thing, *vars(thing).values()) if isinstance(thing, type) else (thing,):
            yield inspect.getdoc(one) or ""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    yield ast.get_docstring(node) or ""


def read(most):
    """The words by how frequent they are, their counts, and the text as numbers of words.

    Between documents stand gaps of -1, so that no word is near one of another document.
    """
    texts, length = [], 0
    for text in documents():
        texts.append(re.findall("[a-z]{2,}", text.lower()))
        length += len(texts[-1])
        if length > most:
            break
    counts = Counter(word for text in texts for word in text)
    words = [word for word, n in counts.most_common() if n >= 5]
    number = {word: k for k, word in enumerate(words)}
    gap = [-1] * WINDOW
    text = [k for words in texts for k in [*(number.get(w, -1) for w in words), *gap]]
    return words, np.array([counts[w] for w in words], float), np.array(text)


def pairs(text, counts, rng):
    """Pairs of words that are near each other, in random order; frequent words are thinned out."""
    share = counts / counts.sum()
    kept = np.append(np.sqrt(1e-4 / share) + 1e-4 / share, 1.0)
    text = text[rng.random(len(text)) < kept[text]]
    reach = rng.integers(1, WINDOW + 1, len(text))
    found = []
    for k in range(1, WINDOW + 1):
        near = (reach[k:] >= k) & (text[k:] >= 0) & (text[:-k] >= 0)
        found += [(text[k:][near], text[:-k][near]), (text[:-k][near], text[k:][near])]
    both = np.stack([np.concatenate(side) for side in zip(*found, strict=True)])
    return both[:, rng.permutation(both.shape[1])]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def loss_and_rows(vectors, contexts, word, near, drawn):
    """The mean loss of some pairs of words, and its gradient by rows of the two tables."""
    v, u, w = vectors[word], contexts[near], contexts[drawn]
    true = np.einsum("ij,ij->i", v, u)
    false = v @ w.T
    weight = NEGATIVES / len(drawn)
    loss = -(log_sigmoid(true).sum() + weight * log_sigmoid(-false).sum()) / len(word)
    toward = (np.exp(log_sigmoid(true)) - 1)[:, None]  # the losses' derivatives by the products
    away = np.exp(log_sigmoid(false)) * weight
    to_vectors = fastgd.Rows(word, toward * u + away @ w)
    to_contexts = np.concatenate([near, drawn]), np.concatenate([toward * v, away.T @ v])
    return loss, {"vectors": to_vectors, "contexts": fastgd.Rows(*to_contexts)}


def train(counts, text, epochs, rng):
    """The words' vectors, and the mean loss of each batch."""
    shape = len(counts), SIZE
    tables = {
        "vectors": ((rng.random(shape) - 0.5) / SIZE).astype(np.float32),
        "contexts": np.zeros(shape, np.float32),
    }
    opt = fastgd.Adagrad(tables, lr=RATE)
    chance = (counts**0.75).cumsum() / (counts**0.75).sum()
    losses = []
    for epoch in range(epochs):
        word, near = pairs(text, counts, rng)
        for k in range(0, len(word), BATCH):
            drawn = chance.searchsorted(rng.random(DRAWN))
            batch = slice(k, k + BATCH)
            loss, rows = loss_and_rows(*tables.values(), word[batch], near[batch], drawn)
            opt.step(rows)
            losses.append(loss)
        print(f"epoch {epoch + 1:2d} of {epochs}: loss {np.mean(losses[-len(word) // BATCH :]):.3f}")
    return tables["vectors"], losses


def neighbours(vectors, k, most=6):
    """The words whose vectors point most nearly as the k-th word's does."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit[k]))
    return [int(n) for n in nearest if n != k][:most]
