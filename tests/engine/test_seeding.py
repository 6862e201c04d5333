"""Keys are pinned, distinct over neighbouring positions, and good in the 32 bits that torch's CPU generator reads."""

from __future__ import annotations

import random

import numpy as np
import torch

from ctr.engine.seeding import mix, stream, torch_generator

LOW = 0xFFFFFFFF
NAMES = ("init", "forward", "data", "augment", "split", "plugin:phase_controller")


def test_known_answers_do_not_change_between_versions() -> None:
    assert stream(42, "forward") == 0x180C7192EC20302B
    assert stream(42, "data") == 0x6584D5442E0C8268
    key = stream(42, "forward")
    assert mix(key) == 0x658F8BD155288361
    assert mix(key, 0) == 0x5DAA8E0BF124AF20
    assert mix(key, 0, 3, 17) == 0x8A680E52952E0CEE
    assert torch.randperm(8, generator=torch_generator(42, "data", 0, 0)).tolist() == [0, 2, 6, 4, 7, 3, 1, 5]


def test_streams_differ_by_seed_and_name() -> None:
    keys = {stream(seed, name) & LOW for seed in (*range(200), -1, 2**40) for name in NAMES}
    assert len(keys) == 202 * len(NAMES)
    assert stream(4, "2:x") != stream(42, "x")


def test_low_bits_of_neighbouring_positions_collide_no_more_than_chance() -> None:
    key = stream(7, "forward")
    positions = [(p, e, m) for p in range(3) for e in range(60) for m in range(800)]
    low = {mix(key, *at) & LOW for at in positions}
    expected = len(positions) ** 2 / 2 / 2**32  # 2.4 pairs
    assert len(positions) - len(low) < 6 * expected


def test_all_64_bits_of_a_large_grid_are_distinct() -> None:
    key = stream(7, "forward")
    grid = {mix(key, a, b, c) for a in range(50) for b in range(50) for c in range(50)}
    assert len(grid) == 50**3


def test_order_and_number_of_the_parts_matter() -> None:
    key = stream(1, "data")
    assert len({mix(key), mix(key, 0), mix(key, 0, 0), mix(key, 0, 1), mix(key, 1, 0), mix(key, 1)}) == 6


def test_one_changed_bit_of_any_part_changes_half_of_the_low_bits() -> None:
    draw = random.Random(0)
    flips = np.zeros(32)
    trials = 0
    for _ in range(300):
        parts = [draw.getrandbits(20) for _ in range(3)]
        before = mix(stream(3, "forward"), *parts)
        for place in range(3):
            for bit in range(20):
                changed = list(parts)
                changed[place] ^= 1 << bit
                difference = (before ^ mix(stream(3, "forward"), *changed)) & LOW
                flips += [(difference >> i) & 1 for i in range(32)]
                trials += 1
    assert np.abs(flips / trials - 0.5).max() < 0.02  # sd 0.0037


def test_keys_are_64_bit_for_any_whole_number() -> None:
    assert all(0 <= mix(2**64 - 1, part) < 2**64 for part in (-1, 0, 2**64, -(2**70)))


def test_neighbouring_seeds_draw_uncorrelated_numbers() -> None:
    rows = torch.stack([torch.rand(4096, generator=torch_generator(seed, "augment", 0, 0)) for seed in range(8)])
    off_diagonal = torch.corrcoef(rows) - torch.eye(8)
    assert off_diagonal.abs().max() < 0.08
