// Reads resources as a JSON list, and prints what the schemas of their operators find wrong.
import { readFileSync } from "node:fs";

const KINDS = {
  ScaledObject: "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
  ServiceMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
};
const findings = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const models = await import(KINDS[resource.kind]);
  try {
    new models[resource.kind](resource).validate();
  } catch (error) {
    findings.push(`${resource.kind}: ${error.message}`);
  }
}
console.log(JSON.stringify(findings));
