"""Validate the document of a server and those of its models, or the one of its admin API."""

import json
import os
import sys
import urllib.parse
import urllib.request

from openapi_spec_validator import OpenAPIV31SpecValidator


def fetch(path):
    request = urllib.request.Request(sys.argv[1] + path, headers={"X-API-Key": os.environ["KEY"]})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


paths = []
if sys.argv[2:] != ["admin"]:
    models = [entry["model"] for entry in fetch("/models")["models"]]
    assert models, "the server has no models"
    paths = [f"/models/{urllib.parse.quote(model, safe='')}/openapi.json" for model in models]
for path in ["/openapi.json", *paths]:
    document = fetch(path)
    OpenAPIV31SpecValidator(document).validate()
    assert document["paths"], f"{path} says nothing"
    print(f"{path}: {len(document['paths'])} paths, valid")
