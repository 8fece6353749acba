// Makes very many calls at once on one connection and counts their outcomes.
//
//   node burst.js HOST:PORT METHOD CALLS < request
//
// The request is read from standard input in wire form. It prints one JSON object: how many calls
// ended with each status, and how many of those that failed carried details.
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");

const [target, method, calls] = process.argv.slice(2);
const request = fs.readFileSync(0);
const client = new grpc.Client(target, grpc.credentials.createInsecure());
const pass = (bytes) => bytes;
const outcome = { statuses: {}, detailed: 0 };
const options = { deadline: Date.now() + 60_000 };

let open = Number(calls);
for (let call = 0; call < Number(calls); call++) {
  client.makeUnaryRequest(method, pass, pass, request, new grpc.Metadata(), options, (error) => {
    const name = grpc.status[error ? error.code : grpc.status.OK];
    outcome.statuses[name] = (outcome.statuses[name] ?? 0) + 1;
    if (error && error.metadata.get("grpc-status-details-bin").length > 0) {
      outcome.detailed += 1;
    }
    open -= 1;
    if (open === 0) {
      console.log(JSON.stringify(outcome));
      client.close();
    }
  });
}
