package example;

import com.embedgrpc.v1.EmbedRequest;
import com.embedgrpc.v1.EmbeddingServiceGrpc;
import com.embedgrpc.v1.RankedDocument;
import com.embedgrpc.v1.RerankOptions;
import com.embedgrpc.v1.RerankRequest;
import com.embedgrpc.v1.RerankServiceGrpc;
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
import java.util.HashMap;
import java.util.List;
import java.util.Map;
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
      embedMany(EmbeddingServiceGrpc.newStub(channel));
      rerank(RerankServiceGrpc.newBlockingStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS));
      try {
        embedding
            .withDeadlineAfter(30, TimeUnit.SECONDS)
            .embed(EmbedRequest.newBuilder().addTexts("A text.").addTexts("").build());
      } catch (StatusRuntimeException error) {
        printError(error);
      }
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void embed(EmbeddingServiceGrpc.EmbeddingServiceBlockingStub client) {
    var request = EmbedRequest.newBuilder().addTexts(TOWER).addTexts(RIVERS).build();
    var vectors = client.embed(request).getEmbeddingsList();
    System.out.printf(
        "embed: %d vectors of %d numbers, %d and %d tokens%n",
        vectors.size(),
        vectors.get(0).getDense().getDimensions(),
        vectors.get(0).getTokenCount(),
        vectors.get(1).getTokenCount());
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

  private static void printError(StatusRuntimeException error)
      throws InvalidProtocolBufferException {
    var line = new StringBuilder("error: ").append(error.getStatus().getCode());
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        line.append(' ').append(detail.unpack(ErrorInfo.class).getReason());
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
