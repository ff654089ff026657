"""Checks manifests of kinds that are not Kubernetes' own, by the models that their projects publish.

manifests.py FOLDER-OF-KSERVE-PACKAGE PACKAGING-FOLDER OUTPUT-FOLDER

What these manifests have of Kubernetes' own kinds is written to the output folder as a pod, for the tool that
knows those. Nothing of the package runs but the models: the rest of it is a server of its own.
"""

import importlib
import json
import pathlib
import re
import sys
import types

import yaml

kserve_folder, packaging, output = map(pathlib.Path, sys.argv[1:])

package = types.ModuleType("kserve")
package.__path__ = [str(kserve_folder)]
sys.modules["kserve"] = package
models = types.ModuleType("kserve.models")
models.__path__ = [str(kserve_folder / "models")]
sys.modules["kserve.models"] = models

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def model(name):
    """The class of that name, or none where it is Kubernetes' own."""
    file = re.sub(r"(?<!^)(?=[A-Z][a-z0-9])|(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    for stem in {file, file.replace("v_1", "v1")}:
        if (kserve_folder / "models" / f"{stem}.py").exists():
            return getattr(importlib.import_module(f"kserve.models.{stem}"), name)
    return None


def check(value, kind, place):
    """Every key is known and every value is of its type."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        assert isinstance(value, list), f"{place} is not a list"
        for index, item in enumerate(value):
            check(item, match[1], f"{place}[{index}]")
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        assert isinstance(value, dict), f"{place} is not a map"
        for key, item in value.items():
            check(item, match[1], f"{place}.{key}")
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{place} is {value!r}, not {kind}"
    elif known := model(kind):
        fields = {json_name: name for name, json_name in known.attribute_map.items()}
        for key, item in value.items():
            assert key in fields, f"{place} has no field {key}"
            check(item, known.openapi_types[fields[key]], f"{place}.{key}")
        known(**{fields[key]: item for key, item in value.items()})  # What is required is there.
    else:
        kubernetes_own.append((place, kind))


kubernetes_own = []
for file, kind in [
    ("cluster-serving-runtime.yaml", "V1alpha1ClusterServingRuntime"),
    ("inference-service.yaml", "V1beta1InferenceService"),
]:
    manifest = yaml.safe_load((packaging / "kserve" / file).read_text())
    assert manifest["kind"] == kind.removeprefix("V1alpha1").removeprefix("V1beta1"), file
    version = re.match("V1(alpha|beta)1", kind)[0].lower()
    assert manifest["apiVersion"] == f"serving.kserve.io/{version}", file
    check(manifest, kind, file)
    print(f"{file} is a {kind}")

runtime = yaml.safe_load((packaging / "kserve/cluster-serving-runtime.yaml").read_text())
spec = {key: runtime["spec"][key] for key in ("containers", "volumes")}
for where, known in [(place, kind) for place, kind in kubernetes_own]:
    assert known in ("V1ObjectMeta", "V1Container", "V1Volume", "V1ResourceRequirements"), (where, known)
pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "guesthouse"}, "spec": spec}
(output / "kserve-pod.yaml").write_text(json.dumps(pod))

from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor  # noqa: E402

monitor = yaml.safe_load((packaging / "kubernetes/servicemonitor.yaml").read_text())
read = ServiceMonitor.model_validate(monitor)
again = json.loads(read.model_dump_json(by_alias=True, exclude_none=True))
assert again == monitor, f"servicemonitor.yaml has a field that nobody reads: {again} {monitor}"
print("servicemonitor.yaml is a ServiceMonitor")

kustomization = yaml.safe_load((packaging / "kubernetes/kustomization.yaml").read_text())
for file in kustomization["resources"] + kustomization["configMapGenerator"][0]["files"]:
    assert (packaging / "kubernetes" / file).exists(), f"kustomization.yaml names {file}"
