package example;

import com.embedgrpc.v1.EmbedOptions;
import com.embedgrpc.v1.EmbedRequest;
import com.embedgrpc.v1.EmbeddingServiceGrpc;
import com.embedgrpc.v1.RankedDocument;
import com.embedgrpc.v1.RerankOptions;
import com.embedgrpc.v1.RerankRequest;
import com.embedgrpc.v1.RerankServiceGrpc;
import com.embedgrpc.v1.StreamRerankPart;
import com.embedgrpc.v1.StreamRerankRequest;
import com.embedgrpc.v1.StreamRerankResponse;
import com.embedgrpc.v1.StreamRerankSetup;
import com.embedgrpc.v1.Truncation;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

/** Embeds, streams, ranks and reads an error. */
public final class Main {
  private static final String TOWER = "The tower is 330 metres tall.";
  private static final String RIVERS = "Rivers flow to the sea.";

  private Main() {}

  /** Runs every step against the server at {@code HOST:PORT}. */
  public static void main(String[] arguments) throws Exception {
    String target = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    ManagedChannel channel =
        Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    try {
      var embedding = EmbeddingServiceGrpc.newBlockingStub(channel);
      embed(embedding.withDeadlineAfter(30, TimeUnit.SECONDS));
      embedPartly(embedding.withDeadlineAfter(30, TimeUnit.SECONDS));
      embedMany(EmbeddingServiceGrpc.newStub(channel));
      rerank(RerankServiceGrpc.newBlockingStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS));
      streamRerank(RerankServiceGrpc.newStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS));
      var options =
          EmbedOptions.newBuilder().setTruncation(Truncation.TRUNCATION_NONE).setMaxTokens(4);
      try {
        embedding
            .withDeadlineAfter(30, TimeUnit.SECONDS)
            .embed(twoTexts().setOptions(options).build());
      } catch (StatusRuntimeException error) {
        printError(error);
      }
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void embed(EmbeddingServiceGrpc.EmbeddingServiceBlockingStub client) {
    var vectors = client.embed(twoTexts().build()).getEmbeddingsList();
    System.out.printf(
        "embed: %d vectors of %d numbers, %d and %d tokens%n",
        vectors.size(),
        vectors.get(0).getDense().getDimensions(),
        vectors.get(0).getTokenCount(),
        vectors.get(1).getTokenCount());
  }

  private static EmbedRequest.Builder twoTexts() {
    return EmbedRequest.newBuilder().addTexts(TOWER).addTexts(RIVERS);
  }

  /** Embeds the texts that can be embedded, and reads why the other cannot. */
  private static void embedPartly(EmbeddingServiceGrpc.EmbeddingServiceBlockingStub client) {
    var request =
        EmbedRequest.newBuilder().addTexts(TOWER).addTexts("").setAllowPartial(true).build();
    var embeddings = client.embed(request).getEmbeddingsList();
    for (int index = 0; index < embeddings.size(); index++) {
      if (embeddings.get(index).hasError()) {
        var reason = embeddings.get(index).getError().getReason().name();
        System.out.printf(
            "partial: texts[%d] %s%n", index, reason.replaceFirst("^ERROR_REASON_", ""));
      }
    }
  }

  private static void embedMany(EmbeddingServiceGrpc.EmbeddingServiceStub client)
      throws InterruptedException {
    Map<String, String> texts = new HashMap<>();
    for (int number = 0; number < 2000; number++) {
      texts.put(Integer.toString(number), "text number " + number);
    }
    var embedder = new StreamEmbedder(client);
    Map<String, List<Float>> vectors = embedder.embed(texts);
    System.out.printf(
        "stream: %d of %d texts, reconnects: %d%n",
        vectors.size(), texts.size(), embedder.reconnects());
  }

  private static void rerank(RerankServiceGrpc.RerankServiceBlockingStub client) {
    List<String> documents = List.of("It is red.", TOWER, RIVERS);
    var request =
        RerankRequest.newBuilder()
            .setQuery("How tall is the tower?")
            .addAllDocuments(documents)
            .setOptions(RerankOptions.newBuilder().setTopN(2))
            .build();
    for (RankedDocument ranked : client.rerank(request).getResultsList()) {
      System.out.printf("rerank: %.4f %s%n", ranked.getScore(), documents.get(ranked.getIndex()));
    }
  }

  /** Ranks the documents of two queries, which fit into the window of one stream. */
  private static void streamRerank(RerankServiceGrpc.RerankServiceStub client) {
    List<String> queries = List.of("How tall is the tower?", "Where does the water go?");
    List<String> documents = List.of(TOWER, RIVERS);
    Map<String, String> best = new ConcurrentHashMap<>();
    var end = new CompletableFuture<Void>();
    StreamObserver<StreamRerankRequest> requests =
        client.streamRerank(
            new StreamObserver<>() {
              @Override
              public void onNext(StreamRerankResponse response) {
                var result = response.getResult();
                if (result.hasError()) {
                  System.err.printf(
                      "query %s: %s%n", result.getId(), result.getError().getMessage());
                } else if (result.hasRanking()) {
                  best.put(
                      result.getId(), documents.get(result.getRanking().getResults(0).getIndex()));
                }
              }

              @Override
              public void onError(Throwable error) {
                end.completeExceptionally(error);
              }

              @Override
              public void onCompleted() {
                end.complete(null);
              }
            });
    requests.onNext(
        StreamRerankRequest.newBuilder().setSetup(StreamRerankSetup.getDefaultInstance()).build());
    for (String query : queries) {
      var part = StreamRerankPart.newBuilder().setId(query).setQuery(query);
      requests.onNext(
          StreamRerankRequest.newBuilder().setPart(part.addAllDocuments(documents)).build());
    }
    requests.onCompleted();
    end.join();
    for (String query : queries) {
      System.out.printf("stream rerank: %s %s%n", query, best.get(query));
    }
  }

  private static void printError(StatusRuntimeException error)
      throws InvalidProtocolBufferException {
    var line = new StringBuilder("error: ").append(error.getStatus().getCode());
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        var info = detail.unpack(ErrorInfo.class);
        line.append(' ').append(info.getReason());
        if (info.containsMetadata("label")) {
          line.append(' ').append(info.getMetadataOrThrow("label"));
        }
      } else if (detail.is(BadRequest.class)) {
        for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          line.append(' ').append(violation.getField());
        }
      } else if (detail.is(RetryInfo.class)) {
        var delay = detail.unpack(RetryInfo.class).getRetryDelay();
        System.out.printf("retry after %d.%03d s%n", delay.getSeconds(), delay.getNanos() / 1000000);
      }
    }
    System.out.println(line);
  }
}
