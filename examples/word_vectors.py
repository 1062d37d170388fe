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
from pydoc_data.topics import topics

import numpy as np

import fastgd

SIZE, BATCH, WINDOW, NEGATIVES, RATE = 64, 8192, 5, 5, 0.2
DRAWN = 64  # words drawn at random that all pairs of a batch share
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "turtledemo"}
ASKED = ("list", "class", "string", "exception", "file", "thread", "integer")
ALSO = ("dict", "import", "loop", "socket")
EVERYWHERE = 60  # so many of the most frequent words are nobody's neighbours: the, of, in, …


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


def softplus(x):
    """log(1 + exp(x)) of products that stay small."""
    return np.log1p(np.exp(x))


def loss_and_rows(vectors, contexts, word, near, drawn):
    """The mean loss of some pairs of words, and its gradient by rows of the two tables."""
    v, u, w = vectors[word], contexts[near], contexts[drawn]
    true = np.einsum("ij,ij->i", v, u)
    false = v @ w.T
    weight = np.float32(NEGATIVES / len(drawn))
    loss = (softplus(-true).sum() + weight * softplus(false).sum()) / len(word)
    toward = -1 / (1 + np.exp(true[:, None]))  # the losses' derivatives by the products
    away = weight / (1 + np.exp(-false))
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
        print(
            f"epoch {epoch + 1:2d} of {epochs}: loss {np.mean(losses[-len(word) // BATCH :]):.3f}"
        )
    return tables["vectors"], losses


def neighbours(vectors, k, most=6):
    """The words, but for those everywhere, whose vectors point most nearly as the k-th's does."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit[k]))
    return [int(n) for n in nearest if n != k and n >= EVERYWHERE][:most]


def plot(path, words, vectors, losses):
    """Draw words with their neighbours in the plane where these vary most, and the loss."""
    from matplotlib.figure import Figure

    from fastgd.plot import style

    groups = [[words.index(w), *neighbours(vectors, words.index(w))] for w in ASKED]
    group_of = {k: n for n, group in reversed(list(enumerate(groups))) for k in group}
    shown = list(group_of)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    at = unit @ np.linalg.svd(unit[shown] - unit[shown].mean(0), full_matrices=False)[2][:2].T
    with style():
        figure = Figure((11, 5.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2.4, 1])
        left.scatter(*at[shown].T, s=9, c=[f"C{n}" for n in group_of.values()])
        left.set(title="words and their nearest neighbours", xticks=[], yticks=[])
        left.margins(0.08)
        right.plot(losses, alpha=0.3)
        smooth = np.convolve(losses, np.full(100, 0.01), "valid")
        right.plot(np.arange(len(smooth)) + 50, smooth, "C0-")
        right.set(title="loss", xlabel="batch")
        figure.draw_without_rendering()
        asked = [k for k in shown if words[k] in ASKED]
        labels = [
            left.text(*at[k], words[k], color=f"C{group_of[k]}", ha="center", va="bottom",
                      weight="bold" if k in asked else "normal")
            for k in shown
        ]  # fmt: skip
        spread(left, labels)
        figure.savefig(path)


def spread(axes, labels):
    """Move labels up and down until none lies on another."""
    boxes = [label.get_window_extent() for label in labels]
    half = np.array([(box.width + 6, box.height) for box in boxes]) / 2
    center = np.array([((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in boxes])
    for _ in range(300):
        apart = center[:, None] - center
        over = half[:, None] + half - np.abs(apart)
        over[np.arange(len(labels)), np.arange(len(labels))] = 0
        push = np.where((over > 0).all(2), over[..., 1], 0) * np.where(apart[..., 1] < 0, -1, 1)
        push = np.where(apart[..., 1] == 0, np.triu(push) - np.tril(push), push)
        center[:, 1] += 0.25 * push.sum(1)
    for label, (x, y), (_, h) in zip(labels, center, half, strict=True):
        label.set_position(axes.transData.inverted().transform((x, y - h)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--words", type=int, default=10**9, help="words of text to read at most")
    parser.add_argument("--plot", help="where to draw the words and the loss")
    arguments = parser.parse_args()
    words, counts, text = read(arguments.words)
    print(f"{int(counts.sum()):,} words of text, {len(words):,} different ones")
    vectors, losses = train(counts, text, arguments.epochs, np.random.default_rng(0))
    for word in filter(words.__contains__, ASKED + ALSO):
        near = ", ".join(words[k] for k in neighbours(vectors, words.index(word)))
        print(f"{word:>10s}: {near}")
    if arguments.plot:
        plot(arguments.plot, words, vectors, losses)


if __name__ == "__main__":
    main()
