"""Ask the package index for known vulnerabilities of locked requirements; exit code 1 if there are any.

An index may have no such data (a mirror has not): that is said, and is no failure, since nothing was audited.
"""

import json
import subprocess
import sys


def main() -> None:
    """Audit the files that the arguments name."""
    found = []
    for path in sys.argv[1:]:
        command = [sys.executable, "-m", "pip_audit", "--requirement", path, "--disable-pip", "--format", "json"]
        run = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
        try:
            packages = json.loads(run.stdout)["dependencies"]
        except ValueError:
            print(
                f"{path}: no audit, pip-audit failed: {(run.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}"
            )
            continue
        audited = [package for package in packages if "skip_reason" not in package]
        print(
            f"{path}: {len(audited)} of {len(packages)} packages audited"
            + ("" if audited else ": the index has no such data")
        )
        found += [
            (package["name"], package["version"], vuln["id"], vuln["fix_versions"])
            for package in audited
            for vuln in package["vulns"]
        ]
    for name, version, vulnerability, fixed in sorted({(*row[:3], ", ".join(row[3])) for row in found}):
        print(f"{name} {version}: {vulnerability}, fixed in {fixed or 'no version'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
