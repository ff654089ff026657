"""FastAPI with onnxruntime: what a team would write to serve a model of the benchmark.

    MODELS=… CASE=… uvicorn fastapi_server:app --workers 2

`POST /predict` takes the bytes of the inputs one after the other and returns those of the first output.
With CASE=toxicity it takes and returns JSON instead, with scikit-learn's vectorizer rebuilt from ASSETS.
"""

import os
import pathlib

import fastapi

import peers

app = fastapi.FastAPI()

if os.environ["CASE"] == "toxicity":
    judge = peers.Toxicity(pathlib.Path(os.environ["ASSETS"]))

    @app.post("/predict")
    def predict(request: peers.Text):
        score = judge.score(request.text)
        return {"label": "toxic" if score >= 0.5 else "clean", "score": score}

else:
    model = peers.TensorModel(pathlib.Path(os.environ["MODELS"]), os.environ["CASE"])

    @app.post("/predict")
    async def predict(request: fastapi.Request):
        outputs = model.run(await request.body())
        return fastapi.Response(outputs, media_type="application/octet-stream")


@app.get("/health")
async def health():
    return "ready"
