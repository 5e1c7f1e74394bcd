"""The files that other machines read: cluster.yaml for `ray up`, and deploy/ for Docker and Kubernetes."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT
from kubernetes_validate import validate

KUBERAY = ROOT / "deploy" / "kuberay"
CRD = json.loads((ROOT / "tests" / "golden" / "rayjob_crd.json").read_text())
OLDEST = "1.33"  # the oldest Kubernetes version whose schemas the manifests keep


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def rayjob() -> dict[str, Any]:
    (job,) = documents("rayjob.yaml")
    return job


def pods() -> list[dict[str, Any]]:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_ray_up_accepts_the_cluster_file() -> None:
    """Ray's own validator accepts the file, with the dashboard on the loopback, tokens on, no further open port, named
    machine images, and a shared disk."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "security_group" not in config["provider"]
    # Only credentials and versions are copied. The code comes with the job.
    assert sorted(Path(path).name for path in config["file_mounts"].values()) == ["auth_token", "constraints.txt"]
    known = {"InstanceType", "ImageId", "InstanceMarketOptions", "BlockDeviceMappings"}
    known |= {"SecurityGroupIds", "IamInstanceProfile"}  # keys that a user may fill in
    for kind in config["available_node_types"].values():
        assert set(kind["node_config"]) <= known
        # the drivers of Ray's default image are too old for our torch
        assert kind["node_config"]["ImageId"].startswith("ami-")
    # The host mounts the folder with the first line. The container sees it through the second.
    assert any("mount -t nfs4" in line and line.endswith(" /shared") for line in config["initialization_commands"])
    assert "--volume=/shared:/shared" in config["docker"]["run_options"]
    assert "--out /shared/" in (ROOT / "cluster.yaml").read_text()


def test_ray_opens_its_nodes_to_each_other_and_ssh_to_all() -> None:
    """The security group that `ray up` makes is as docs/security.md describes it: our rules are added to Ray's and
    replace none."""
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    ours = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}
    among, ssh, added = _create_default_inbound_rules({"sg-1"}, [ours])
    assert (among["IpProtocol"], among["UserIdGroupPairs"]) == ("-1", [{"GroupId": "sg-1"}])
    assert "IpRanges" not in among
    assert ssh == ours | {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    assert added == ours


@pytest.mark.parametrize("name", ["nightly.yaml", "network.yaml"])
def test_kubernetes_accepts_the_manifests(name: str) -> None:
    """Each document fits the strict schema of its kind, in which an unknown field is an error."""
    for document in documents(name):
        validate(document, OLDEST, strict=True)


def test_kuberay_accepts_the_job() -> None:
    """The RayJob fits KubeRay's definition and the operator's own rules, and its pods fit Kubernetes' schema."""
    job = rayjob()
    jsonschema.validate(job, CRD)
    for pod in pods():
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        validate(template, OLDEST, strict=True)
    assert job["spec"]["submissionMode"] == "SidecarMode"
    assert not {"submitterPodTemplate", "submitterConfig"} & set(job["spec"])
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"].keys() == {"RAY_JOB_STOP_WAIT_TIME_S"}
    assert job["spec"]["backoffLimit"] == 0  # a retry would start the night again after every verdict but a pass


@pytest.mark.parametrize(
    "path", [("spec", "shutdownAfterJobFinish"), ("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeout")]
)
def test_a_misspelt_field_is_found(path: tuple[str, ...]) -> None:
    """An unknown field is an error at every level, so the test above can fail."""
    job = rayjob()
    inner = job
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        jsonschema.validate(job, CRD)


def test_pods_are_closed() -> None:
    """Pods have a token, no privileges, one GPU a worker, no GPU on the head, and ingress from the cluster only."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    head, worker = (pod["spec"]["containers"][0] for pod in pods())
    assert "nvidia.com/gpu" not in head["resources"]["requests"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for container in (head, worker):
        assert container["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    (policy,) = documents("network.yaml")
    ours = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay"}}}
    assert policy["spec"]["podSelector"] == ours["podSelector"]
    assert policy["spec"]["ingress"][0] == {"from": [ours]}


def test_the_nightly_creates_the_job_that_is_checked_here() -> None:
    """kustomization.yaml packs rayjob.yaml under the name that the CronJob mounts, and the CronJob's role may only
    create jobs."""
    kustomization = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    assert all((KUBERAY / name).is_file() for name in kustomization["resources"])
    (packed,) = kustomization["configMapGenerator"]
    assert (packed["files"], kustomization["generatorOptions"]["disableNameSuffixHash"]) == (["rayjob.yaml"], True)
    by_kind = {document["kind"]: document for document in documents("nightly.yaml")}
    pod = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == packed["name"]
    assert pod["containers"][0]["args"][-1] == "/job/rayjob.yaml"
    assert pod["serviceAccountName"] == by_kind["RoleBinding"]["subjects"][0]["name"]
    assert by_kind["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    # The server adds a unique ending to the name, so that tonight's job cannot collide with last night's. The job ends
    # before the next night begins.
    assert set(rayjob()["metadata"]) == {"generateName"}
    assert by_kind["CronJob"]["spec"]["schedule"] == "0 2 * * *"
    late = by_kind["CronJob"]["spec"]["startingDeadlineSeconds"]
    assert late + rayjob()["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_one_version_of_ray_everywhere() -> None:
    """The images, the manifest and the constraints name the same Ray, because a client of another version cannot
    join."""
    (ray,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    files: list[Path] = [ROOT / "cluster.yaml", ROOT / "deploy" / "Dockerfile"]
    tags = [tag for file in files for tag in re.findall(r"rayproject/ray:([0-9.]+)-py311", file.read_text())]
    assert tags == [ray] * 3
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == ray


def test_the_image_holds_what_the_job_runs() -> None:
    """The image has every path that the Dockerfile copies, the job's entry point, and the library that reads s3://."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "'.[s3]'" in dockerfile
    assert "s3" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = re.findall(r"^COPY --chown=\S+ (.+)$", dockerfile, re.MULTILINE)
    copied = {name for line in lines for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    script = rayjob()["spec"]["entrypoint"].split()[1]
    assert Path(script).relative_to("/home/ray/visualbert-core").parts[0] in copied
    assert (ROOT / Path(script).relative_to("/home/ray/visualbert-core")).is_file()
