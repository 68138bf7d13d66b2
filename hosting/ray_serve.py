"""Predictions as a service on Ray Serve: a photograph in, an answer as JSON out, in batches.

pip install 'dermlens[ray]' 'ray[serve]==2.60.0', then: serve run hosting.ray_serve:app
and: curl --data-binary @photo.jpg http://127.0.0.1:8000/
Research and education only, not a medical device.
"""

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

SIZES = (1, 2, 4, 8)  # Of batches: the network is traced once for each, and before any request.


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=32)
class Classifier:
    """One replica: a bundle, and a traced network for each size of batch."""

    def __init__(self) -> None:
        import dermlens as dl

        self.classifier = dl.load()
        self.predictors = {size: self.classifier.predictor(size) for size in SIZES}
        for size, predictor in self.predictors.items():
            predictor.logits(np.zeros((size, *self.classifier.input_size, 3), np.uint8))

    @serve.batch(max_batch_size=SIZES[-1], batch_wait_timeout_s=0.02)
    async def logits(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return the logits of the images that have come together."""
        size = next(size for size in SIZES if size >= len(images))
        return list(self.predictors[size].logits(np.stack(images)))

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one request, whose body is the file of a photograph."""
        from dermlens.data.images import MAX_FILE_BYTES, fit_image, opened_rgb
        from dermlens.errors import DataError
        from dermlens.report.facts import answer_of

        content = b""
        async for part in request.stream():
            content += part
            if len(content) > MAX_FILE_BYTES:
                return JSONResponse({"error": "The file is too large."}, 413)
        try:
            with opened_rgb(content, "The photograph") as picture:
                pixels = fit_image(picture, self.classifier.input_size)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 422)
        answer = answer_of(self.classifier, await self.logits(pixels))
        return JSONResponse(answer.to_json(self.classifier.classes))


app = Classifier.bind()
