// Embeds, streams, ranks and reads an error.
//
//   node build/main.js [HOST:PORT]

import { setTimeout } from "node:timers/promises";

import { ClientError, Status, createChannel, createClientFactory } from "nice-grpc";
import {
  BadRequest,
  ErrorInfo,
  RetryInfo,
  RichClientError,
  errorDetailsClientMiddleware,
} from "nice-grpc-error-details";

import { ErrorReason, Truncation } from "./gen/embedgrpc/v1/common.js";
import {
  type EmbeddingServiceClient,
  EmbeddingServiceDefinition,
  ResultOrder,
  type StreamEmbedRequest,
} from "./gen/embedgrpc/v1/embedding_service.js";
import {
  type DeepPartial,
  type RerankServiceClient,
  RerankServiceDefinition,
  type StreamRerankRequest,
} from "./gen/embedgrpc/v1/rerank_service.js";

const TOWER = "The tower is 330 metres tall.";
const RIVERS = "Rivers flow to the sea.";

const BATCH_SIZE = 64;
const RECONNECTS_MAX = 5;
/** How many texts may be sent and not yet answered. */
const WINDOW = 256;

/** The places of a window. Before it is open there are none. */
class Places {
  #free = 0;
  #wake: () => void = () => {};

  release(count: number): void {
    this.#free += count;
    this.#wake();
  }

  async take(count: number): Promise<void> {
    while (this.#free < count) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    this.#free -= count;
  }
}

async function main(target: string): Promise<void> {
  const channel = createChannel(target);
  const factory = createClientFactory().use(errorDetailsClientMiddleware);
  try {
    const embedding = factory.create(EmbeddingServiceDefinition, channel);
    await embed(embedding);
    await embedPartly(embedding);
    await embedMany(embedding);
    const ranking = factory.create(RerankServiceDefinition, channel);
    await rerank(ranking);
    await streamRerank(ranking);
    const options = { truncation: Truncation.TRUNCATION_NONE, maxTokens: 4 };
    await embedding.embed({ texts: [TOWER, RIVERS], options }).catch(printError);
  } finally {
    channel.close();
  }
}

async function embed(client: EmbeddingServiceClient): Promise<void> {
  const { embeddings } = await client.embed({ texts: [TOWER, RIVERS] });
  const tokens = embeddings.map((one) => one.tokenCount).join(" and ");
  const numbers = embeddings[0]?.dense?.values.length;
  console.log(`embed: ${embeddings.length} vectors of ${numbers} numbers, ${tokens} tokens`);
}

/** Embeds the texts that can be embedded, and reads why the other cannot. */
async function embedPartly(client: EmbeddingServiceClient): Promise<void> {
  const { embeddings } = await client.embed({ texts: [TOWER, ""], allowPartial: true });
  for (const [index, { error }] of embeddings.entries()) {
    if (error) {
      const reason = ErrorReason[error.reason]?.replace("ERROR_REASON_", "");
      console.log(`partial: texts[${index}] ${reason}`);
    }
  }
}

/** Embeds 2,000 texts over as many streams as it takes. */
async function embedMany(client: EmbeddingServiceClient): Promise<void> {
  const unanswered = new Map<string, string>();
  for (let number = 0; number < 2000; number++) {
    unanswered.set(String(number), `text number ${number}`);
  }
  const vectors = new Map<string, number[]>();
  let reconnects = 0;
  while (unanswered.size > 0) {
    try {
      await embedStream(client, unanswered, vectors);
    } catch (error) {
      // A lost connection, and a server that is about to stop.
      const lost = error instanceof ClientError && error.code === Status.UNAVAILABLE;
      if (!lost || reconnects === RECONNECTS_MAX) {
        throw error;
      }
      reconnects += 1;
      await setTimeout(100 * 2 ** reconnects);
    }
  }
  console.log(`stream: ${vectors.size} of 2000 texts, reconnects: ${reconnects}`);
}

/** Embeds texts by id over one stream. Moves each from `unanswered` to `vectors`. */
async function embedStream(
  client: EmbeddingServiceClient,
  unanswered: Map<string, string>,
  vectors: Map<string, number[]>,
): Promise<void> {
  const places = new Places();
  for await (const { step } of client.streamEmbed(requests(unanswered, places))) {
    if (step?.$case === "ready") {
      places.release(Math.min(WINDOW, step.value.maxInFlightInputs));
    } else if (step?.$case === "results") {
      for (const { id, outcome } of step.value.results) {
        unanswered.delete(id);
        if (outcome?.$case === "error") {
          console.error(`text ${id}: ${outcome.value.message}`);
        } else {
          vectors.set(id, outcome?.value.dense?.values ?? []);
        }
      }
      places.release(step.value.results.length);
    }
  }
}

/** Yields the setup, and then the texts in batches as the window has places for them. */
async function* requests(
  texts: Map<string, string>,
  places: Places,
): AsyncGenerator<DeepPartial<StreamEmbedRequest>> {
  const order = ResultOrder.RESULT_ORDER_COMPLETION;
  yield { step: { $case: "setup", value: { order } } };
  const inputs = [...texts].map(([id, text]) => ({ id, text }));
  for (let start = 0; start < inputs.length; start += BATCH_SIZE) {
    const batch = inputs.slice(start, start + BATCH_SIZE);
    await places.take(batch.length);
    yield { step: { $case: "batch", value: { inputs: batch } } };
  }
}

async function rerank(client: RerankServiceClient): Promise<void> {
  const documents = ["It is red.", TOWER, RIVERS];
  const query = "How tall is the tower?";
  const { results } = await client.rerank({ query, documents, options: { topN: 2 } });
  for (const { score = 0, index = 0 } of results) {
    console.log(`rerank: ${score.toFixed(4)} ${documents[index]}`);
  }
}

/** Ranks the documents of two queries, which fit into the window of one stream. */
async function streamRerank(client: RerankServiceClient): Promise<void> {
  const queries = ["How tall is the tower?", "Where does the water go?"];
  const documents = [TOWER, RIVERS];
  const best = new Map<string, string | undefined>();
  async function* requests(): AsyncGenerator<DeepPartial<StreamRerankRequest>> {
    yield { step: { $case: "setup", value: {} } };
    for (const query of queries) {
      yield { step: { $case: "part", value: { id: query, query, documents } } };
    }
  }
  for await (const { step } of client.streamRerank(requests())) {
    if (step?.$case !== "result") {
      continue;
    }
    const { id, outcome } = step.value;
    if (outcome?.$case === "ranking") {
      best.set(id, documents[outcome.value.results[0]?.index ?? 0]);
    } else {
      console.error(`query ${id}: ${outcome?.value.message}`);
    }
  }
  for (const query of queries) {
    console.log("stream rerank:", query, best.get(query));
  }
}

function printError(error: unknown): void {
  if (!(error instanceof RichClientError)) {
    throw error;
  }
  const words = [Status[error.code]];
  for (const detail of error.extra) {
    if (detail.$type === ErrorInfo.$type) {
      words.push(detail.reason);
      if (detail.metadata.label) {
        words.push(detail.metadata.label);
      }
    } else if (detail.$type === BadRequest.$type) {
      words.push(...detail.fieldViolations.map((violation) => violation.field));
    } else if (detail.$type === RetryInfo.$type) {
      console.log(`retry after ${detail.retryDelay?.seconds} s`);
    }
  }
  console.log("error:", ...words);
}

await main(process.argv[2] ?? "127.0.0.1:50051");
