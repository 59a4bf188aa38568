from __future__ import annotations

import json
from dataclasses import replace

import pytest

from groundingml.models.grounding_dino import GroundingDinoConfig
from groundingml.models.nanodet import NanoDetConfig

OFFICIAL = [
    # name, Swin's width, depth of stage 3, heads, window; levels, heads for each layer, two eps
    ("grounding_dino_tiny", 96, 6, 3, 7, 4, False, (1e-3, 1e-3)),
    ("grounding_dino_base", 128, 18, 4, 12, 4, False, (1e-3, 1e-3)),
    ("mm_grounding_dino_tiny", 96, 6, 3, 7, 4, True, (1e-3, 1e-5)),
    ("mm_grounding_dino_base", 128, 18, 4, 12, 4, True, (1e-3, 1e-5)),
    ("mm_grounding_dino_large", 192, 18, 6, 12, 5, True, (1e-3, 1e-5)),
    ("llmdet_tiny", 96, 6, 3, 7, 4, True, (1e-3, 1e-5)),
    ("llmdet_base", 128, 18, 4, 12, 4, True, (1e-3, 1e-5)),
    ("llmdet_large", 192, 18, 6, 12, 5, True, (1e-3, 1e-5)),
]


@pytest.mark.parametrize(("name", "width", "depth", "heads", "window", "levels", "separate", "eps"), OFFICIAL)
def test_official_sizes(name, width, depth, heads, window, levels, separate, eps):
    config = getattr(GroundingDinoConfig, name)()
    swin = config.backbone
    assert (swin.embed_dim, swin.depths[2], swin.num_heads[0], swin.window_size) == (
        width,
        depth,
        heads,
        window,
    )
    assert config.num_levels == levels
    assert swin.out_stages == ((1, 2, 3, 4) if levels == 5 else (2, 3, 4))
    assert (config.decoder_eps, config.head_eps) == eps
    assert (config.share_box_head, config.class_bias) == (not separate, separate)
    assert config.class_scale == (1 / 16 if separate else 1.0)
    assert config.score_aggregation == ("mean" if separate else "max")


@pytest.mark.parametrize("name", [row[0] for row in OFFICIAL])
def test_a_config_survives_json(name):
    config = replace(getattr(GroundingDinoConfig, name)(), num_queries=7, default_threshold=0.2)
    assert GroundingDinoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_with_another_backbone_survives_json():
    config = GroundingDinoConfig(
        family="nano", backbone=NanoDetConfig(channels=64), num_levels=3, proposals="dense"
    )
    assert GroundingDinoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_hugging_face_dict_is_known_by_its_model_type():
    config = GroundingDinoConfig.from_dict({"model_type": "grounding-dino", "num_queries": 11})
    assert config == replace(GroundingDinoConfig.grounding_dino_tiny(), num_queries=11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "glip"}, "family must be one of 'grounding-dino'"),
        ({"proposals": "none"}, "proposals must be one of"),
        ({"query_content": "x"}, "query_content must be one of"),
        ({"score_aggregation": "median"}, "score_aggregation must be one of"),
        ({"decoder_heads": 7}, "d_model=256 is not a multiple of decoder_heads=7"),
        ({"fusion_heads": 3}, "fusion_dim=1024 is not a multiple of fusion_heads=3"),
        ({"num_levels": 2}, "the backbone returns 3 maps"),
        ({"text_config": {}}, "hidden_size"),
        ({"max_text_len": 1000}, "exceeds BERT's positions"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GroundingDinoConfig(**changes)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="not fields of a GroundingDinoConfig: colour, taste"):
        GroundingDinoConfig.from_dict({"taste": 1, "colour": 2})
