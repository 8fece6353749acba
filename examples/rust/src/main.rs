//! Embeds, streams, ranks and reads an error.
//!
//!     cargo run -- [HOST:PORT]

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use pb::embedding_service_client::EmbeddingServiceClient;
use pb::rerank_service_client::RerankServiceClient;
use pb::{
    EmbedOptions, EmbedRequest, RerankOptions, RerankRequest, ResultOrder, StreamEmbedBatch,
    StreamEmbedInput, StreamEmbedRequest, StreamEmbedSetup, StreamRerankPart, StreamRerankRequest,
    StreamRerankSetup, Truncation,
};
use pb::{stream_embed_request, stream_embed_response, stream_embed_result};
use pb::{stream_rerank_request, stream_rerank_response, stream_rerank_result};

mod pb {
    tonic::include_proto!("embedgrpc.v1");
}

const TOWER: &str = "The tower is 330 metres tall.";
const RIVERS: &str = "Rivers flow to the sea.";
const BATCH_SIZE: usize = 64;
const RECONNECTS_MAX: u32 = 5;
/// How many texts may be sent and not yet answered.
const WINDOW: usize = 256;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1);
    let target = target.as_deref().unwrap_or("127.0.0.1:50051");
    let channel = Endpoint::from_shared(format!("http://{target}"))?.connect_lazy();

    let mut embedding = EmbeddingServiceClient::new(channel.clone());
    embed(&mut embedding).await?;
    embed_partly(&mut embedding).await?;
    embed_many(&mut embedding).await?;
    let mut ranking = RerankServiceClient::new(channel);
    rerank(&mut ranking).await?;
    stream_rerank(&mut ranking).await?;
    let too_long = EmbedRequest {
        texts: vec![TOWER.into(), RIVERS.into()],
        options: Some(EmbedOptions {
            truncation: Truncation::None.into(),
            max_tokens: 4,
            ..Default::default()
        }),
        ..Default::default()
    };
    if let Err(status) = embedding.embed(with_deadline(too_long)).await {
        print_error(&status);
    }
    Ok(())
}

/// Returns a request that tells the server how long the caller waits.
fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(30));
    request
}

async fn embed(client: &mut EmbeddingServiceClient<Channel>) -> Result<(), Status> {
    let request = EmbedRequest {
        texts: vec![TOWER.into(), RIVERS.into()],
        ..Default::default()
    };
    let vectors = client
        .embed(with_deadline(request))
        .await?
        .into_inner()
        .embeddings;
    println!(
        "embed: {} vectors of {} numbers, {} and {} tokens",
        vectors.len(),
        vectors[0]
            .dense
            .as_ref()
            .map_or(0, |dense| dense.dimensions),
        vectors[0].token_count,
        vectors[1].token_count,
    );
    Ok(())
}

/// Embeds the texts that can be embedded, and reads why the other cannot.
async fn embed_partly(client: &mut EmbeddingServiceClient<Channel>) -> Result<(), Status> {
    let request = EmbedRequest {
        texts: vec![TOWER.into(), String::new()],
        allow_partial: true,
        ..Default::default()
    };
    let response = client.embed(with_deadline(request)).await?.into_inner();
    for (index, embedding) in response.embeddings.iter().enumerate() {
        if let Some(failure) = &embedding.error {
            let reason = failure
                .reason()
                .as_str_name()
                .trim_start_matches("ERROR_REASON_");
            println!("partial: texts[{index}] {reason}");
        }
    }
    Ok(())
}

/// Embeds 2,000 texts over as many streams as it takes.
async fn embed_many(client: &mut EmbeddingServiceClient<Channel>) -> Result<(), Status> {
    let mut unanswered: BTreeMap<String, String> = (0..2000)
        .map(|number| (number.to_string(), format!("text number {number}")))
        .collect();
    let mut vectors = HashMap::new();
    let mut reconnects = 0;
    while let Err(status) = embed_stream(client, &mut unanswered, &mut vectors).await {
        // A server that is about to stop, and a lost connection, which tonic reports as UNKNOWN.
        let lost = matches!(status.code(), Code::Unavailable | Code::Unknown);
        if !lost || reconnects == RECONNECTS_MAX {
            return Err(status);
        }
        reconnects += 1;
        tokio::time::sleep(Duration::from_millis(100 << reconnects)).await;
    }
    println!(
        "stream: {} of 2000 texts, reconnects: {reconnects}",
        vectors.len()
    );
    Ok(())
}

/// Embeds texts by id over one stream. It moves each from `unanswered` to `vectors`.
async fn embed_stream(
    client: &mut EmbeddingServiceClient<Channel>,
    unanswered: &mut BTreeMap<String, String>,
    vectors: &mut HashMap<String, Vec<f32>>,
) -> Result<(), Status> {
    let (sender, requests) = mpsc::channel(1);
    let setup = stream_embed_request::Step::Setup(StreamEmbedSetup {
        order: ResultOrder::Completion.into(),
        ..Default::default()
    });
    let _ = sender.send(StreamEmbedRequest { step: Some(setup) }).await;
    let mut responses = client
        .stream_embed(ReceiverStream::new(requests))
        .await?
        .into_inner();
    let first = responses
        .message()
        .await?
        .and_then(|response| response.step);
    let Some(stream_embed_response::Step::Ready(ready)) = first else {
        return Err(Status::internal("the stream did not begin with ready"));
    };

    let window = WINDOW.min(ready.max_in_flight_inputs as usize);
    let places = Semaphore::new(window);
    let inputs: Vec<_> = unanswered
        .iter()
        .map(|(id, text)| StreamEmbedInput {
            id: id.clone(),
            text: text.clone(),
            // New fields of the contract get their defaults.
            ..Default::default()
        })
        .collect();
    let size = BATCH_SIZE.min(ready.max_batch_inputs as usize).min(window);
    let sending = send_all(sender, &inputs, size, &places);
    let receiving = async {
        while let Some(response) = responses.message().await? {
            let Some(stream_embed_response::Step::Results(batch)) = response.step else {
                continue;
            };
            for result in batch.results {
                places.add_permits(1);
                unanswered.remove(&result.id);
                match result.outcome {
                    Some(stream_embed_result::Outcome::Embedding(embedding)) => {
                        vectors.insert(result.id, embedding.dense.unwrap_or_default().values);
                    }
                    Some(stream_embed_result::Outcome::Error(failure)) => {
                        eprintln!("text {}: {}", result.id, failure.message);
                    }
                    None => {}
                }
            }
        }
        Ok::<(), Status>(())
    };
    // The first that fails ends both.
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

/// Sends inputs in batches and waits for places in the window before each batch.
async fn send_all(
    sender: mpsc::Sender<StreamEmbedRequest>,
    inputs: &[StreamEmbedInput],
    size: usize,
    places: &Semaphore,
) -> Result<(), Status> {
    for batch in inputs.chunks(size) {
        let taken = places.acquire_many(batch.len() as u32).await;
        taken.expect("the window stays open").forget();
        let step = stream_embed_request::Step::Batch(StreamEmbedBatch {
            inputs: batch.to_vec(),
        });
        // When the stream is broken, the receiving side returns the reason.
        if sender
            .send(StreamEmbedRequest { step: Some(step) })
            .await
            .is_err()
        {
            break;
        }
    }
    Ok(())
}

async fn rerank(client: &mut RerankServiceClient<Channel>) -> Result<(), Status> {
    let documents = vec!["It is red.".to_string(), TOWER.into(), RIVERS.into()];
    let request = RerankRequest {
        query: "How tall is the tower?".into(),
        documents: documents.clone(),
        options: Some(RerankOptions {
            top_n: 2,
            ..Default::default()
        }),
        ..Default::default()
    };
    let response = client.rerank(with_deadline(request)).await?.into_inner();
    for ranked in response.results {
        println!(
            "rerank: {:.4} {}",
            ranked.score(),
            documents[ranked.index() as usize]
        );
    }
    Ok(())
}

/// Ranks the documents of two queries, which fit into the window of one stream.
async fn stream_rerank(client: &mut RerankServiceClient<Channel>) -> Result<(), Status> {
    let documents = vec![TOWER.to_string(), RIVERS.into()];
    let setup = stream_rerank_request::Step::Setup(StreamRerankSetup::default());
    let parts = ["How tall is the tower?", "Where does the water go?"].map(|query| {
        stream_rerank_request::Step::Part(StreamRerankPart {
            id: query.into(),
            query: query.into(),
            documents: documents.clone(),
            ..Default::default()
        })
    });
    let steps = std::iter::once(setup).chain(parts);
    let requests: Vec<_> = steps
        .map(|step| StreamRerankRequest { step: Some(step) })
        .collect();
    let requests = with_deadline(tokio_stream::iter(requests));
    let mut responses = client.stream_rerank(requests).await?.into_inner();
    let mut best = BTreeMap::new();
    while let Some(response) = responses.message().await? {
        let Some(stream_rerank_response::Step::Result(result)) = response.step else {
            continue;
        };
        match result.outcome {
            Some(stream_rerank_result::Outcome::Ranking(ranking)) => {
                best.insert(result.id, ranking.results[0].index() as usize);
            }
            Some(stream_rerank_result::Outcome::Error(failure)) => {
                eprintln!("query {}: {}", result.id, failure.message);
            }
            None => {}
        }
    }
    for (query, index) in best {
        println!("stream rerank: {query} {}", documents[index]);
    }
    Ok(())
}

fn print_error(status: &Status) {
    let details = status.get_error_details();
    let mut words = Vec::new();
    if let Some(info) = details.error_info() {
        words.push(info.reason.as_str());
        words.extend(info.metadata.get("label").map(String::as_str));
    }
    if let Some(request) = details.bad_request() {
        words.extend(
            request
                .field_violations
                .iter()
                .map(|violation| violation.field.as_str()),
        );
    }
    // `Code` prints a sentence; the wire and other languages have these names.
    let code = match status.code() {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        _ => status.code().description(),
    };
    println!("error: {code} {}", words.join(" "));
    if let Some(retry) = details.retry_info() {
        println!("retry after {:?}", retry.retry_delay);
    }
}
