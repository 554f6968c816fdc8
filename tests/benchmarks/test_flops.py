"""The FLOPs of an update, on numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.flops import Shape, Work, flop_ratio, work

SHAPE = Shape(layers=2, width=4, heads=2, key_heads=1, head_dim=3, mlp_width=5, vocabulary=7)

#: Two trajectories that share [1, 2, 3]; the policy wrote 3 and what follows.
SEQUENCES = [[1, 2, 3, 4], [1, 2, 3, 5, 6]]
MASKS = [[False, False, True, True], [False, False, True, True, True]]


def test_a_token_costs_its_projections_and_its_mlp():
    # queries 4×6, keys and values 4×3 each, output 6×4, three products of the MLP 4×5
    assert SHAPE.per_token == 2 * (24 + 12 + 12 + 24 + 60)


def test_a_pair_costs_a_score_and_a_weighted_value_of_every_head():
    assert SHAPE.per_pair == 2 * (2 * 3) + 2 * (2 * 3)


def test_a_prediction_costs_a_row_of_the_head():
    assert SHAPE.per_prediction == 2 * 4 * 7


def test_the_tree_counts_shared_tokens_pairs_and_predictions_once():
    # tokens 1 2 3 4 5 6 at depths 0 1 2 3 3 4; logits after 2, after 3 (for 4 and for 5), after 5
    assert work(SEQUENCES, MASKS, share=True) == Work(tokens=6, pairs=1 + 2 + 3 + 4 + 4 + 5, predictions=3)


def test_plain_packing_counts_every_trajectory_for_itself():
    assert work(SEQUENCES, MASKS, share=False) == Work(tokens=9, pairs=10 + 15, predictions=2 + 3)


def test_forward_and_backward_are_three_times_forward():
    # per layer 264 a token and 24 a pair, two layers; 56 a prediction
    assert Work(6, 19, 3).flops(SHAPE) == 3 * (2 * (264 * 6 + 24 * 19) + 56 * 3) == 12_744
    assert Work(9, 25, 5).flops(SHAPE) == 3 * (2 * (264 * 9 + 24 * 25) + 56 * 5) == 18_696


def test_the_ratio_is_plain_over_tree():
    assert flop_ratio(SHAPE, SEQUENCES, MASKS) == 18_696 / 12_744


def test_the_first_token_is_predicted_by_nothing():
    assert work([[1, 2]], [[True, False]], share=True).predictions == 0


def test_trajectories_that_share_nothing_gain_nothing():
    assert flop_ratio(SHAPE, [[1, 2, 3], [4, 5, 6]], [[False, True, True]] * 2) == 1.0


def test_a_shape_is_read_from_the_model_s_config(tmp_path: Path):
    raw = {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert Shape.read(tmp_path) == Shape(30, 576, 9, 3, 64, 1536, 49_152)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"head_dim": 128}))
    assert Shape.read(tmp_path).head_dim == 128
