"""What `wandb_store` answers about artifacts and about itself: nothing that a run's rows depend on."""

from __future__ import annotations

from typing import Any

#: Entity, project and run id.
Key = tuple[str, str, str]


class WandbAnswers:
    """Answers to the operations around a table's upload, and to the probes of older clients."""

    def __init__(self) -> None:
        self._owners: dict[str, Key] = {}

    def upload_url(self, key: Key, name: str) -> str:
        """An address that takes one file of a run."""
        raise NotImplementedError

    def _do_ServerFeaturesQuery(self, variables: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _do_OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> Any:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _do_ProbeRunInput(self, variables: dict[str, Any]) -> Any:
        return {"RunType": {"fields": [{"name": "projectId"}]}}

    def _do_ProbeServerCapabilities(self, variables: dict[str, Any]) -> Any:
        info = {"fields": [{"name": "cliVersionInfo"}, {"name": "latestLocalVersionInfo"}]}
        query = {"fields": [{"name": "serverInfo"}, {"name": "viewer"}]}
        return {"QueryType": query, "MutationType": {"fields": []}, "ServerInfoType": info}

    def _do_InputFields(self, variables: dict[str, Any]) -> Any:
        return {"TypeInfo": {"inputFields": []}}

    def _do_RunStoppedStatus(self, variables: dict[str, Any]) -> Any:
        return {"project": {"run": {"stopped": False}}}

    def _do_ArtifactType(self, variables: dict[str, Any]) -> Any:
        return {"project": {"artifact": None}}

    def _do_ClientIDMapping(self, variables: dict[str, Any]) -> Any:
        return {"clientIDMapping": None}

    def _do_XXHashDigestsEnabled(self, variables: dict[str, Any]) -> Any:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _do_FetchArtifactDigestAlgorithm(self, variables: dict[str, Any]) -> Any:
        return {"project": {"artifactType": {"artifactCollection": None}}}

    def _do_CreateArtifact(self, variables: dict[str, Any]) -> Any:
        given = variables["input"]
        artifact_id = f"artifact-{len(self._owners)}"
        self._owners[artifact_id] = (given["entityName"], given["projectName"], given["runName"])
        artifact = {
            "id": artifact_id,
            "state": "PENDING",
            "artifactSequence": {"id": f"sequence-{artifact_id}", "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _do_CreateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        key = self._owners[variables["artifactID"]]
        file = {"id": "manifest", "uploadUrl": None, "uploadHeaders": []}
        if variables.get("includeUpload"):
            file["uploadUrl"] = self.upload_url(key, "wandb_manifest.json")
        return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": file}}}

    def _do_UpdateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        key = self._owners[variables["artifactManifestID"]]
        file = {"id": "manifest", "uploadUrl": None, "uploadHeaders": []}
        if variables.get("includeUpload"):
            file["uploadUrl"] = self.upload_url(key, "wandb_manifest.json")
        manifest = {"id": variables["artifactManifestID"], "file": file}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _do_CreateArtifactFiles(self, variables: dict[str, Any]) -> Any:
        edges = []
        given = variables.get("input") or variables
        for spec in given["artifactFiles"]:
            key = self._owners[spec["artifactID"]]
            node = {
                "storagePath": spec["name"],
                "uploadUrl": self.upload_url(key, spec["name"]),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": spec["artifactID"]},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _do_CommitArtifact(self, variables: dict[str, Any]) -> Any:
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "0"}}}
