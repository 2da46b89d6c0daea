"""What somebody who knows scikit-learn writes: a linear head from stored features, judged by folds.

python sklearn_train.py FEATURES.npz LABELS.csv FOLDS

Reads what the --extract of the other two scripts wrote and a table of file, label and patient;
chooses the penalty inside each of some folds of whole patients among ten, by their log loss, as
engine.train --cv does, and fits the last head to all. It leaves out what engine.train does
beside: calibration, intervals, refusal, duplicates, floors.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def search(n):
    penalties = 10.0 ** np.linspace(-2.5, 0.5, 10)
    return GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")),
        # scikit-learn's C divides a sum, ours a mean.
        {"logisticregression__C": 1.0 / (penalties * 0.64 * n)},
        scoring="neg_log_loss",
        cv=StratifiedGroupKFold(5, shuffle=True, random_state=0),
        n_jobs=-1,
    )


def main():
    stored = np.load(sys.argv[1])
    with Path(sys.argv[2]).open(encoding="utf-8", newline="") as stream:
        table = {row["file"]: (row["label"], row["patient"]) for row in csv.DictReader(stream)}
    labels, people = zip(*[table[str(file)] for file in stored["files"]], strict=True)
    X, y, groups = stored["X"].astype(np.float32), np.array(labels), np.array(people)
    classes = np.unique(y)
    shares = np.zeros((len(y), len(classes)))
    folds = StratifiedGroupKFold(int(sys.argv[3]), shuffle=True, random_state=0)
    for train, test in folds.split(X, y, groups):
        head = search(len(y)).fit(X[train], y[train], groups=groups[train])
        shares[test] = head.predict_proba(X[test])
    search(len(y)).fit(X, y, groups=groups)
    scores = [roc_auc_score(y == name, shares[:, at]) for at, name in enumerate(classes)]
    figures = {
        "accuracy": accuracy_score(y, classes[shares.argmax(axis=1)]),
        "auroc_macro": float(np.mean(scores)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
