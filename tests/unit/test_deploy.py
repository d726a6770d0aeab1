"""deploy/: what a cluster would refuse, or what would run something else than the project, checked without a cluster.

Kubernetes' own kinds and all pod templates against its published schemas (package kubernetes-validate), KubeRay's fields
against a schema written after its reference, worker groups by the parser of Ray's autoscaler, the app's config by Serve's.
"""

import ipaddress
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import ray
import ray.util.metrics
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ray_app.base.config import Config, ServeLimits, load_config
from ray_app.base.extras import EXTRAS
from ray_app.cluster import progress
from ray_app.cluster.resources import PoolRequest, allocate_pool
from ray_app.stages.order import STAGES
from serve.local import HAPROXY_DEFAULTS, environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.34"
OTHERS = ("ray.io/v1", "monitoring.coreos.com/v1")  # kinds that Kubernetes does not know
# Of kube-state-metrics, which is not installed here.
KUBE_METRICS = {"kube_job_status_failed", "kube_cronjob_status_last_successful_time"}


@cache
def documents() -> list[tuple[str, dict]]:
    """(file, document) of all manifests."""
    paths = sorted(DEPLOY.rglob("*.yaml"))
    return [(str(path.relative_to(DEPLOY)), doc) for path in paths for doc in yaml.safe_load_all(path.read_text())]


def named(kind: str) -> dict:
    (found,) = [doc for _, doc in documents() if doc["kind"] == kind]
    return found


def pod_templates(node, where: str = "") -> list[tuple[str, dict]]:
    """All pod templates below a node, at whatever depth."""
    found = []
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            found.append((where, node))
        for key, inner in node.items():
            found += pod_templates(inner, f"{where}/{key}")
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            found += pod_templates(inner, f"{where}/{i}")
    return found


def all_pods() -> list[tuple[str, dict]]:
    """(where, template)."""
    return [(f"{file}{where}", pod) for file, doc in documents() for where, pod in pod_templates(doc)]


def all_containers() -> list[tuple[str, dict]]:
    return [(where, container) for where, pod in all_pods() for container in pod["spec"]["containers"]]


def clusters() -> tuple[dict, dict]:
    """Specs of the one for jobs and of the one that serves."""
    return named("RayCluster")["spec"], named("RayService")["spec"]["rayClusterConfig"]


def validate_kuberay(doc: dict) -> None:
    jsonschema.validate(doc, json.loads((DEPLOY / "schemas" / "kuberay-1.6.2.json").read_text()))


def validate_pod(template: dict) -> None:
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@cache
def config() -> Config:
    """What pods find as /etc/relevance/relevance.yaml."""
    (text,) = named("ConfigMap")["data"].values()
    with tempfile.TemporaryDirectory() as temp:
        path = Path(temp) / "relevance.yaml"
        path.write_text(text.replace("/app/", f"{ROOT}/"))
        return load_config(path)


def worker_groups(spec: dict) -> dict[str, dict]:
    """Resources of one node per group, as Ray's autoscaler reads them before a pod runs."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "relevance", "namespace": "relevance"}, "spec": spec}
    return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


@pytest.mark.parametrize(("file", "doc"), documents(), ids=[f"{file}:{doc['kind']}" for file, doc in documents()])
def test_schemas(file, doc):
    if doc["apiVersion"] not in OTHERS:
        kubernetes_validate.validate(doc, KUBERNETES, strict=True)
        return
    if doc["apiVersion"] == "ray.io/v1":
        validate_kuberay(doc)
    for where, template in pod_templates(doc):
        try:
            validate_pod(template)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{where}: {error.message}") from None


def test_the_schemas_find_slips():
    cluster = json.loads(json.dumps(named("RayCluster")))
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate_kuberay(cluster)
    pod = cluster["spec"]["headGroupSpec"]["template"]
    pod["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate_pod(pod)


def test_secrets_are_references():
    for where, container in all_containers():
        for variable in container.get("env", []):
            if re.search("TOKEN|PASSWORD|SECRET|_KEY", variable["name"]):
                assert "secretKeyRef" in variable.get("valueFrom", {}), f"{where}: {variable['name']}"
    assert not [file for file, doc in documents() if doc["kind"] == "Secret"]


def test_the_readme_makes_every_secret():
    text = "\n".join(path.read_text() for path in DEPLOY.rglob("*.yaml"))
    used = set(re.findall(r"(?:secretKeyRef:\s*\{?\s*name|secretName): ([\w-]+)", text))
    made = set(re.findall(r"create secret generic ([\w-]+)", (DEPLOY / "README.md").read_text()))
    assert used == made


def test_every_container_is_bounded_and_unprivileged():
    for where, container in all_containers():
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, where
        assert "memory" in container["resources"]["limits"], where
        # Ray counts the limits; a GPU that is requested but not limited is refused by Kubernetes.
        gpus = [container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")]
        assert gpus[0] == gpus[1], where
        if gpus[0]:
            assert container["image"].endswith("-gpu"), where


def test_all_pods_are_restricted():
    """What `pod-security.kubernetes.io/enforce: restricted` refuses; KubeRay's autoscaler too, which stands in no pod template."""
    assert named("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    contexts = [(where, container["securityContext"]) for where, container in all_containers()]
    for where, template in all_pods():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"], where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), where
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "persistentVolumeClaim", "emptyDir"}, where
    contexts += [("autoscaler", spec["autoscalerOptions"]["securityContext"]) for spec in clusters()]
    for where, context in contexts:
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}, where


def test_only_heads_may_ask_kubernetes():
    """KubeRay binds the right to change pods and RayClusters to the account of the head; decoders of strangers' pictures need none."""
    accounts = {doc["metadata"]["name"]: doc for _, doc in documents() if doc["kind"] == "ServiceAccount"}
    for where, template in all_pods():
        pod, is_head = template["spec"], "headGroupSpec" in where
        name = pod.get("serviceAccountName", "default")
        assert (name == "relevance-head") == is_head, where
        mounts = accounts.get(name, {}).get("automountServiceAccountToken", True)
        assert pod.get("automountServiceAccountToken", mounts) == is_head, where


def test_pods_reach_no_private_network():
    policies = {doc["metadata"]["name"]: doc["spec"] for _, doc in documents() if doc["kind"] == "NetworkPolicy"}
    everyone = policies.pop("relevance")
    assert everyone["podSelector"] == {} and everyone["policyTypes"] == ["Ingress", "Egress"]
    (block,) = [to["ipBlock"] for rule in everyone["egress"] for to in rule["to"] if "ipBlock" in to]
    refused = [ipaddress.ip_network(cidr) for cidr in block["except"]]
    private = "10.1.2.3 172.31.0.1 192.168.0.1 169.254.169.254 168.63.129.16 100.100.100.200 127.0.0.1"
    for address in private.split():
        assert any(ipaddress.ip_address(address) in network for network in refused), address
    assert not any(ipaddress.ip_address("8.8.8.8") in network for network in refused)
    for name, spec in policies.items():  # the autoscaler's way to Kubernetes
        (expression,) = spec["podSelector"]["matchExpressions"]
        assert expression["values"] == ["head", "serving-head"], name
    open_ports = [port["port"] for rule in everyone["ingress"] if "from" not in rule for port in rule["ports"]]
    assert open_ports == [8000], "metrics and Ray's ports are not for everyone"


def test_the_hubs_token_is_where_hub_models_load():
    holders = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]
        for file, doc in documents()
        if doc["kind"] != "RayJob"
        for _, template in pod_templates(doc)
        for container in template["spec"]["containers"]
        if "HF_TOKEN" in [variable["name"] for variable in container.get("env", [])]
    }
    assert holders == {"driver", "teacher"}


def test_models_of_a_hub_are_named_by_commit():
    cfg = config()
    zero_shot = cfg.features.zero_shot_revision
    for revision in (cfg.caption.revision, zero_shot, cfg.train_teacher.revision, cfg.distill.revision):
        assert re.fullmatch("[0-9a-f]{40}", revision or ""), revision


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_image_installs_what_is_locked(device):
    """Every package by version and hash; the versions allowed by pyproject.toml."""
    lines = (DEPLOY / f"requirements-{device}.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", lines, re.M))
    entries = re.split(r"^(?=[\w.-]+(?:\[[^]]*\])?==)", lines, flags=re.M)[1:]
    assert len(entries) == len(locked) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    engine = extras["vllm"] if device == "gpu" else []
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], *engine]
    wanted += [line for extra in ("serve", "export", "mlflow") for line in extras[extra]]
    for text in wanted:
        requirement = Requirement(text)
        version_of = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version_of), f"{text}, but {version_of} is locked: run make lock"
    assert f"requirements-{device}" in (DEPLOY / "Dockerfile").read_text().replace("$DEVICE", device)
    assert "--require-hashes" in (DEPLOY / "Dockerfile").read_text()


def test_stages_fit_the_worker_groups():
    spec, cfg = named("RayCluster")["spec"], config()
    groups = worker_groups(spec)
    nodes = [{name: float(value) for name, value in group["resources"].items()}
             for group in groups.values() for _ in range(group["max_workers"])]  # fmt: skip
    for name in ("caption", "label", "embed"):
        section = getattr(cfg, name)
        most = getattr(section, "max_actors", None) or section.num_actors
        pool = PoolRequest(
            section=name, num_actors=most, num_cpus=section.num_cpus, num_gpus=section.num_gpus,
            accelerator_type=getattr(section, "accelerator_type", None), upstream_tasks=True,
        )  # fmt: skip
        assert allocate_pool(pool, nodes).num_actors == most, name
    teacher = groups["teacher"]["resources"]
    assert teacher["GPU"] >= cfg.train_teacher.num_workers, "the workers of one training share a node"
    vlm = groups["vlm"]["resources"]
    assert vlm["GPU"] / vlm["CPU"] > 0 and vlm["CPU"] < teacher["CPU"], "Ray takes the smaller one where both fit"
    assert groups["headgroup"]["resources"]["CPU"] == 0, "nothing may run on the head"
    assert all(group["min_workers"] == 0 for group in groups.values()), "an idle cluster costs a head only"


def test_versions_are_those_of_the_project():
    ours = version("ray")
    assert [spec["rayVersion"] for spec in clusters()] == [ours, ours]
    for where, container in all_containers():
        if container["image"].startswith("relevance:"):
            assert ours.startswith(re.fullmatch(r"relevance:([\d.]+)-[cg]pu", container["image"]).group(1)), where


def test_the_dockerfile_copies_what_there_is():
    text = (DEPLOY / "Dockerfile").read_text()
    kept = re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert sorted(kept) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_the_dockerfile_passes_its_linter():
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert found, "pip install -e '.[dev]' brings it"
    lint = subprocess.run([found, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert lint.returncode == 0, lint.stdout


def test_the_service_is_the_app_of_serve_config():
    from ray.serve.schema import ServeDeploySchema

    ours = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    theirs = yaml.safe_load(named("RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(theirs)
    args = theirs["applications"][0].pop("args")
    assert args.pop("config") == "/etc/relevance/relevance.yaml"
    token, local_cache_dir = (text.partition("=") for text in args.pop("set"))
    assert not args and (token[0], local_cache_dir[0]) == ("serve.auth_token_env", "serve.local_cache_dir")
    ours["applications"][0].pop("args")
    # What differs on a cluster: reached from outside, hence with a token; two replicas, so that one may go.
    ours["http_options"]["host"] = "0.0.0.0"
    ours["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] = 2
    assert theirs == ours
    for container in (c for where, c in all_containers() if where.startswith("kuberay/rayservice.yaml")):
        assert token[2] in [variable["name"] for variable in container["env"]]
        assert local_cache_dir[2] in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_service_has_room_for_its_replicas():
    spec = named("RayService")["spec"]
    serving = worker_groups(spec["rayClusterConfig"])["serving"]
    (app,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    (deployment,) = app["deployments"]
    cpus = deployment["ray_actor_options"]["num_cpus"]
    fitting = serving["resources"]["CPU"] // cpus * serving["max_workers"]
    assert deployment["autoscaling_config"]["max_replicas"] <= fitting


def test_a_drained_node_leaves_a_serving_pod():
    budget = named("PodDisruptionBudget")["spec"]
    (serving,) = named("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    labels = serving["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    # For pods of a custom resource Kubernetes takes nothing but a number there.
    assert isinstance(budget["minAvailable"], int) and budget["minAvailable"] < serving["minReplicas"]


def jobs() -> list[tuple[str, dict]]:
    return [(file, doc) for file, doc in documents() if doc["kind"] == "RayJob"]


@pytest.mark.parametrize(("file", "job"), jobs(), ids=[Path(file).stem for file, _ in jobs()])
def test_jobs_run_what_there_is(file, job):
    spec = job["spec"]
    check_command(shlex.split(spec["entrypoint"]), Path(file).stem)
    assert spec["clusterSelector"]["ray.io/cluster"] == named("RayCluster")["metadata"]["name"]
    check_driver(json.loads(spec["entrypointResources"]))


def test_there_is_a_job_for_each_stage():
    assert {Path(file).stem for file, _ in jobs()} == {*STAGES, "evaluate"} - {"demo"}


def test_the_daily_job():
    (container,) = named("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/bash", "-c"]
    (script,) = container["args"]
    assert subprocess.run(["bash", "-n", "-c", script], capture_output=True, timeout=10).returncode == 0
    words = shlex.split(script)
    assert words[:4] == ["exec", "ray", "job", "submit"]
    check_driver(json.loads(words[words.index("--entrypoint-resources") + 1]))
    command = words[words.index("--") + 1 :]
    check_command(command[: command.index("--set")], "run_all")
    override = command[command.index("--set") + 1].replace("$(date -u +%F)", "2026-01-31")
    load_config(ROOT / "configs" / "production.yaml", [override])
    address = {variable["name"]: variable.get("value") for variable in container["env"]}["RAY_API_SERVER_ADDRESS"]
    assert address == f"http://{named('RayCluster')['metadata']['name']}-head-svc:8265"


def check_command(words: list[str], program: str) -> None:
    """`python /app/pipelines/PROGRAM.py --config /etc/relevance/relevance.yaml`, and both are there."""
    python, script, flag, path = words
    assert (python, flag, path) == ("python", "--config", "/etc/relevance/relevance.yaml")
    assert script == f"/app/pipelines/{program}.py" and (ROOT / "pipelines" / f"{program}.py").is_file()
    assert config().output.startswith("s3://"), "pods share no disk"
    for where, container in all_containers():
        if where.startswith(("kuberay/raycluster", "kuberay/rayservice")):
            assert "/etc/relevance" in [mount["mountPath"] for mount in container["volumeMounts"]], where


def check_driver(asked: dict[str, int]) -> None:
    """Some worker group has what a job's program asks for, once per pod."""
    groups = worker_groups(named("RayCluster")["spec"])
    assert asked and [name for name, group in groups.items() if asked.items() <= group["resources"].items()]


# --- metrics ------------------------------------------------------------------------------------------------------


@cache
def exported() -> dict[str, set[str]]:
    """Names under which Ray exports our metrics, each with its tags."""
    import serve.app

    found: dict[str, set[str]] = {}

    class Recorded:
        def __init__(self, name, _description, *rest):
            tags = next((set(arg) for arg in rest if isinstance(arg, tuple)), set())
            base = "ray_" + name
            if type(self) is Histogram:
                found.update({f"{base}_bucket": tags | {"le"}, f"{base}_sum": tags, f"{base}_count": tags})
            elif type(self) is Counter:
                found[base.removesuffix("_total") + "_total"] = tags  # once, whether the name ends in it or not
            else:
                found[base] = tags

    class Counter(Recorded): ...

    class Gauge(Recorded): ...

    class Histogram(Recorded): ...

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Counter, Gauge, Histogram):
            patch.setattr(ray.util.metrics, kind.__name__, kind)
        progress._metrics.__wrapped__()
        serve.app._Metrics(None)
    return found


@cache
def rays_own() -> set[str]:
    """Metrics that Ray's own dashboards show, and those that its agents measure on each node."""
    modules = Path(ray.__file__).parent / "dashboard" / "modules"
    shown = "\n".join(path.read_text() for path in (modules / "metrics" / "dashboards").glob("*.py"))
    measured = (modules / "reporter" / "reporter_agent.py").read_text()
    return set(re.findall(r"\bray_\w+", shown)) | {f"ray_{name}" for name in re.findall(r'"(node_\w+)"', measured)}


def expressions() -> list[tuple[str, str]]:
    board = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    shown = [(panel["title"], t["expr"]) for panel in board["panels"] for t in panel.get("targets", [])]
    rules = [rule for group in named("PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    return shown + [(rule["alert"], rule["expr"]) for rule in rules]


def selectors(expr) -> list:
    """All vector selectors of a parsed expression."""
    if isinstance(expr, promql_parser.VectorSelector):
        return [expr]
    parts = [getattr(expr, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "vs")]
    parts += list(getattr(expr, "args", None) or [])
    return [found for part in parts if part is not None for found in selectors(part)]


@pytest.mark.parametrize(("title", "text"), expressions(), ids=[title for title, _ in expressions()])
def test_expressions_read_metrics_that_exist(title, text):
    found = selectors(promql_parser.parse(text))
    assert found, text
    for selector in found:
        if selector.name not in exported():
            assert selector.name in rays_own() | KUBE_METRICS, f"nothing exports {selector.name}"
            continue
        used = {matcher.name for matcher in selector.matchers.matchers}
        assert used <= exported()[selector.name], f"{selector.name} has no tags {used - exported()[selector.name]}"


def test_groupings_are_tags_of_ours():
    for title, text in expressions():
        names = {selector.name for selector in selectors(promql_parser.parse(text))}
        if names <= exported().keys():
            for tags in re.findall(r"by \(([^)]*)\)", text):
                for name in names:
                    assert {tag.strip() for tag in tags.split(",")} <= exported()[name], f"{title}: {name}"


def test_every_metric_of_ours_is_watched():
    text = json.dumps(expressions())
    for name in exported():
        assert name in text or name.endswith(("_sum", "_count")), f"{name} is in no panel and no alert"


def test_the_monitor_reads_a_port_that_pods_open():
    monitor = named("PodMonitor")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    for file in ("RayCluster", "RayService"):
        for where, pod in pod_templates(named(file)):
            assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), where
            ports = [port["name"] for port in pod["spec"]["containers"][0]["ports"]]
            assert endpoint["port"] in ports, where


def test_haproxy_has_the_timeouts_that_the_local_one_has():
    """Ray's default lets a socket that says nothing stay for an hour: 4,096 of them end the service."""
    wanted = {k: v for k, v in environment(Path("unused")).items() if k.startswith("RAY_SERVE_HAPROXY_TIMEOUT")}
    wanted["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"] = HAPROXY_DEFAULTS
    assert int(wanted["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) <= 10 and "timeout http-request" in HAPROXY_DEFAULTS
    cluster = named("RayService")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        said = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert {name: said.get(name) for name in wanted} == wanted


def test_serve_admits_as_many_requests_as_the_app_has_places_for():
    """Else strangers who ask for pictures fill Serve's places, which come before the app's."""
    limits = ServeLimits()
    (app,) = yaml.safe_load((ROOT / "serve/config.yaml").read_text())["applications"]
    assert (
        app["deployments"][0]["max_ongoing_requests"]
        > limits.max_concurrent_requests + limits.max_concurrent_open_requests
    )


def test_the_extras_that_messages_name_bring_the_packages_that_are_asked_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        brought = {canonicalize_name(Requirement(line).name).removesuffix("-skinny") for line in extras[extra]}
        assert set(packages) <= brought, extra
