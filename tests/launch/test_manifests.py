"""The launchers that cannot run here say what their schedulers understand, and set nothing of a run but its shape."""

import copy
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from recipe.amft.main import compose

LAUNCH = Path(__file__).parents[2] / "launch"
SHELL = [LAUNCH / "slurm.sbatch", LAUNCH / "ray_node.sh"]


def closed(required: list[str], **properties) -> dict:
    """An object without other keys."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(Ki|Mi|Gi|Ti)?$"}}
# The part of Kubernetes' pod (core/v1) and of KubeRay's API ray.io/v1 (the fields of RayJobSpec, RayClusterSpec,
# HeadGroupSpec and WorkerGroupSpec, with their types and those that are required) that the manifest may use.
CONTAINER = closed(
    ["name", "image", "resources"],
    name=TEXT,
    image=TEXT,
    resources=closed(["requests", "limits"], requests=QUANTITIES, limits=QUANTITIES),
    env={"type": "array", "items": closed(["name", "value"], name=TEXT, value=TEXT)},
    volumeMounts={"type": "array", "items": closed(["name", "mountPath"], name=TEXT, mountPath=TEXT)},
)
VOLUME = closed(
    ["name"],
    name=TEXT,
    persistentVolumeClaim=closed(["claimName"], claimName=TEXT, readOnly=FLAG),
    emptyDir=closed([], medium={"enum": ["", "Memory"]}, sizeLimit=TEXT),
)
POD = closed(
    ["spec"],
    metadata={"type": "object"},
    spec=closed(
        ["containers"],
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": VOLUME},
        nodeSelector=TEXTS,
        tolerations={"type": "array"},
    ),
)
WORKERS = closed(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    numOfHosts=WHOLE,
    rayStartParams=TEXTS,
    template=POD,
)
HEAD = closed(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    template=POD,
)
RAYJOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(["name"], name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=WHOLE,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=WHOLE,
        suspend=FLAG,
        rayClusterSpec=closed(
            ["headGroupSpec"],
            rayVersion=TEXT,
            enableInTreeAutoscaling=FLAG,
            headGroupSpec=HEAD,
            workerGroupSpecs={"type": "array", "items": WORKERS},
        ),
    ),
)
SKYPILOT = closed(
    ["name", "num_nodes", "resources", "run"],
    name=TEXT,
    num_nodes={"type": "integer", "minimum": 1},
    resources={"type": "object", "required": ["accelerators"]},
    envs=TEXTS,
    workdir=TEXT,
    file_mounts={
        "type": "object",
        "additionalProperties": closed(["name", "mode"], name=TEXT, mode={"const": "MOUNT"}),
    },
    setup=TEXT,
    run=TEXT,
)


def rayjob() -> dict:
    return yaml.safe_load((LAUNCH / "kubernetes" / "rayjob.yaml").read_text())


def test_the_rayjob_has_the_fields_of_kuberay():
    """Every key is one of ray.io/v1 or of a pod, of the right type; a misspelt one would not pass."""
    jsonschema.validate(rayjob(), RAYJOB)
    broken = copy.deepcopy(rayjob())
    broken["spec"]["shutdownAfterJobFinished"] = broken["spec"].pop("shutdownAfterJobFinishes")
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinished"):
        jsonschema.validate(broken, RAYJOB)


def test_the_rayjobs_cluster_is_the_runs_shape():
    """Head and workers are trainer.nnodes pods with trainer.n_gpus_per_node GPUs each; the overrides compose."""
    spec = rayjob()["spec"]
    program, overrides = spec["entrypoint"].split(" recipe.amft.main ")
    assert program == "python -m"
    config = compose(shlex.split(overrides))
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert config.trainer.nnodes == 1 + sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(config.trainer.n_gpus_per_node)
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
        assert config.amft.run_dir.startswith(mounts)


def test_the_rayjobs_ray_is_the_one_that_is_installed():
    """KubeRay wants the image's version of Ray: that of pyproject.toml."""
    pinned = re.search(r"ray\[default\]==([\d.]+)", (LAUNCH.parent / "pyproject.toml").read_text()).group(1)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_the_skypilot_task_has_its_fields():
    """The keys of a SkyPilot task, and bash that parses in setup and run."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    jsonschema.validate(task, SKYPILOT)
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    """bash reads them; shellcheck has no remark, where it is installed."""
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.mark.parametrize("launcher", [*SHELL, LAUNCH / "skypilot.yaml", LAUNCH / "ray_job.py"], ids=lambda p: p.name)
def test_launchers_set_only_shape_and_folders(launcher):
    """No hyper-parameter in a launcher: whatever it passes to the module is the cluster's shape or a folder."""
    lines = [line for line in launcher.read_text().splitlines() if not line.lstrip().startswith("#")]
    named = set(
        re.findall(r"\b((?:trainer|data|algorithm|actor_rollout_ref|critic|amft)\.[a-z_.]+)=", "\n".join(lines))
    )
    assert named <= {"trainer.nnodes", "trainer.n_gpus_per_node", "amft.run_dir", "amft.cache_dir"}
