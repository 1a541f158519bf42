"""The field's words for protocols, and what a suite says for them here: hints for unknown kinds and variants."""

from __future__ import annotations

import re

_PRACTICAL = "{kind: continual, variant: rotta, delta: 0.1}"
_LABELS = "{kind: label_shift, variant: sar, imbalance_ratio: 500000}"
_MD = "variant md, of reset, continual, gradual and mixed, is mariodoebler/test-time-adaptation"
_CORRELATED = "delta, the Dirichlet concentration, on reset, continual, gradual, mixed or recurring; 0 sorts by label"
_WORDS = {
    "practical": _PRACTICAL,
    "ptta": _PRACTICAL,
    "practical_tta": _PRACTICAL,
    "rotta": _PRACTICAL,
    "gli_tta": "{kind: continual, variant: tribe, delta: 0.1}",
    "tribe": "{kind: continual, variant: tribe, delta: 0.1}",
    "note": "{kind: reset, variant: note, delta: 0.1}",
    "correlated": _CORRELATED,
    "temporally_correlated": _CORRELATED,
    "dirichlet": _CORRELATED,
    "non_iid": _CORRELATED,
    "noniid": _CORRELATED,
    "continual_correlated": "{kind: continual, variant: md, delta: 0}",
    "reset_each_shift_correlated": "{kind: reset, variant: md, delta: 0}",
    "gradual_correlated": "{kind: gradual, variant: md, delta: 0}",
    "mixed_domains_correlated": "{kind: mixed, variant: md, delta: 0.01}",
    "mixed_domains": "kind mixed",
    "mix_shifts": "kind mixed",
    "crossmixture": "{kind: mixed, variant: ttab}",
    "label_shifts": _LABELS,
    "online_imbalance": _LABELS,
    "online_label_shift": _LABELS,
    "imbalanced": _LABELS,
    "reset_each_shift": "kind reset",
    "single_domain": "kind reset",
    "normal": "{kind: reset, variant: sar}",
    "sar": "variant sar, of reset, mixed and label_shift",
    "lifelong": "kind recurring",
    "petta": "{kind: recurring, variant: petta, delta: 0.1}",
    "cdc": "{kind: random_runs, variant: dpcore}",
    "dpcore": "{kind: random_runs, variant: dpcore}",
    "unitta": "kind markov",
    "rdumb": "kind ccc, or reset: {every: 1000} with any kind",
    "episodic": "reset: batch, with any kind",
    "botta": "adapt: {first: 512, classes: 5}",
    "forgetting": "probe: {shift: clean}, with any kind",
    "homogeneousnomixture": "{kind: continual, variant: ttab}",
    "heterogeneousnomixture": "{kind: continual, variant: ttab, delta: 0.1}",
    "inoutmixture": "kind in_out",
    "ttab": "variant ttab, of continual, mixed and in_out",
    "md": _MD,
    "mariodoebler": _MD,
}


def advice(word: str, otherwise: str) -> str:
    """What to write for a word of the field, before another hint; that alone where the word is not known."""
    ours = _WORDS.get(re.sub(r"[\s-]+", "_", word.strip().lower()))
    return f"here it is {ours}; {otherwise}" if ours else otherwise
