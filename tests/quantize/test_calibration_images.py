"""What calibrates does not judge."""

import numpy as np
import pytest
from PIL import Image

from compiler.quantize.images import Images
from compiler.verify.inputs import natural_image

TEXT = "g (float[1,3,16,24] x) => (float[1,3,16,24] y) { y = Relu(x) }"


@pytest.fixture(params=["generated", "a folder"])
def images(request, tmp_path):
    if request.param == "generated":
        return Images()
    for seed in range(5):
        pixels = natural_image((1, 3, 16, 24), seed)[0].transpose(1, 2, 0).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    return Images(tmp_path)


def test_no_image_calibrates_and_judges(images, graph_of):
    graph = graph_of(TEXT)
    calibration, judging = images.calibration(graph), images.judging(graph)
    assert len(calibration) > 1 < len(judging)
    for one in calibration.values():
        for other in judging.values():
            assert np.abs(one["x"] - other["x"]).mean() > 10
