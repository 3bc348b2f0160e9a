"""A run whose patches fall into two groups, for the tests of the Embeddings page."""

import json

import numpy as np

from mmcd.embedding_table import TableTile
from mmcd.geo.grid import Window
from mmcd.inference.roi import choose_rois
from mmcd.services.embeddings import EmbedRequest, embed
from mmcd.services.run_embeddings import Sources, measured_table, write_run_table
from mmcd.services.runs import load_run

from .conftest import GRID, SIZE, THRESHOLD, Prepared, bench_app


def embedded_run(prepared: Prepared) -> str:
    """Add a run to the current workspace whose SAR vectors point one way on flooded patches and another elsewhere."""
    scene = prepared.placed
    run_id = bench_app.paint_run(
        "an embedded run",
        scene.id,
        prepared.stored,
        GRID,
        THRESHOLD,
        model={"name": "ramp", "version": "1", "why": "it was asked for"},
        warnings=[],
        finished="2026-05-03T13:30:00+00:00",
    )
    run = load_run(run_id)
    origins = choose_rois(Window(0, 0, SIZE, SIZE))
    middle = origins + 8
    wet = (middle >= (150, 200)).all(axis=1) & (middle < (300, 380)).all(axis=1)
    random = np.random.default_rng(0)
    vectors = random.normal(0, 0.15, (2, len(origins), 8))
    vectors[:, :, 0] += 1
    vectors[1, wet, 0] -= 1
    vectors[1, wet, 1] += 1
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    tile = TableTile(scene.id, scene.event, str(scene.pre), str(scene.post))
    facts = {"title": scene.title, "model": "ramp", "threshold": THRESHOLD}
    table = measured_table(origins, vectors.astype(np.float16), tile, Sources(run.score, None, scene.label), facts)
    manifest = run.manifest | {"embeddings": write_run_table(table, run.folder, len(origins))}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    embed(EmbedRequest.checked(run=run_id, method="pca"))
    return run_id
