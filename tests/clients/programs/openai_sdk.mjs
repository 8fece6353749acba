// OpenAI's client for Node.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const asked = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: `${asked.url}/v1`, apiKey: "unused", maxRetries: 0 });
const vectors = (answer) => answer.data.map((one) => Array.from(one.embedding));

async function failure(request) {
  try {
    await client.embeddings.create({ model: "embed", input: asked.texts, ...request });
  } catch (error) {
    return {
      class: error.constructor.name,
      status: error.status,
      code: error.code,
      param: error.param,
      message: error.message,
      request_id: error.requestID,
    };
  }
  return null;
}

const all = { model: "embed", input: asked.texts };
const base64 = await client.embeddings.create(all);
const float = await client.embeddings.create({ ...all, encoding_format: "float" });
const short = await client.embeddings.create({ ...all, dimensions: 8 });
const listed = [];
for await (const model of client.models.list()) listed.push(model.id);
console.log(
  JSON.stringify({
    embeddings: { base64: vectors(base64), float: vectors(float) },
    short: vectors(short),
    models: [listed],
    retrieved: (await client.models.retrieve("org/second")).id,
    failures: {
      model: await failure({ model: "nobody" }),
      dimensions: await failure({ dimensions: 10 ** 6 }),
    },
  }),
);
