package example;

import com.embedgrpc.v1.EmbeddingServiceGrpc.EmbeddingServiceStub;
import com.embedgrpc.v1.ResultOrder;
import com.embedgrpc.v1.StreamEmbedBatch;
import com.embedgrpc.v1.StreamEmbedInput;
import com.embedgrpc.v1.StreamEmbedReady;
import com.embedgrpc.v1.StreamEmbedRequest;
import com.embedgrpc.v1.StreamEmbedResponse;
import com.embedgrpc.v1.StreamEmbedResult;
import com.embedgrpc.v1.StreamEmbedSetup;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Semaphore;

/** Embeds texts over as many streams as it takes. */
final class StreamEmbedder {
  private static final int BATCH_SIZE = 64;
  private static final int RECONNECTS_MAX = 5;

  /** How many texts may be sent and not yet answered. */
  private static final int WINDOW = 256;

  private final EmbeddingServiceStub client;
  private int reconnects;

  StreamEmbedder(EmbeddingServiceStub client) {
    this.client = client;
  }

  /** How often the stream was lost and opened again. */
  int reconnects() {
    return reconnects;
  }

  /** Returns a vector for each text that can be embedded, by id. */
  Map<String, List<Float>> embed(Map<String, String> texts) throws InterruptedException {
    Map<String, String> unanswered = new ConcurrentHashMap<>(texts);
    Map<String, List<Float>> vectors = new ConcurrentHashMap<>();
    while (!unanswered.isEmpty()) {
      try {
        new OneStream(unanswered, vectors).run();
      } catch (CompletionException error) {
        // A lost connection, and a server that is about to stop.
        boolean lost = Status.fromThrowable(error).getCode() == Status.Code.UNAVAILABLE;
        if (!lost || reconnects == RECONNECTS_MAX) {
          throw error;
        }
        reconnects++;
        Thread.sleep(100L << reconnects);
      }
    }
    return vectors;
  }

  /** One stream. It moves each text from {@code unanswered} to {@code vectors}. */
  private final class OneStream implements StreamObserver<StreamEmbedResponse> {
    private final Map<String, String> unanswered;
    private final Map<String, List<Float>> vectors;
    private final Semaphore places = new Semaphore(0);
    private final CompletableFuture<StreamEmbedReady> ready = new CompletableFuture<>();
    private final CompletableFuture<Void> end = new CompletableFuture<>();

    OneStream(Map<String, String> unanswered, Map<String, List<Float>> vectors) {
      this.unanswered = unanswered;
      this.vectors = vectors;
    }

    /** Sends the texts as the window has places for them, and waits for the last answer. */
    void run() throws InterruptedException {
      List<StreamEmbedInput> inputs = new ArrayList<>();
      new HashMap<>(unanswered)
          .forEach((id, text) -> inputs.add(
              StreamEmbedInput.newBuilder().setId(id).setText(text).build()));
      StreamObserver<StreamEmbedRequest> requests = client.streamEmbed(this);
      requests.onNext(
          StreamEmbedRequest.newBuilder()
              .setSetup(
                  StreamEmbedSetup.newBuilder().setOrder(ResultOrder.RESULT_ORDER_COMPLETION))
              .build());
      int size = Math.min(BATCH_SIZE, ready.join().getMaxBatchInputs());
      for (int start = 0; start < inputs.size() && !end.isDone(); start += size) {
        var batch = inputs.subList(start, Math.min(start + size, inputs.size()));
        places.acquire(batch.size());
        requests.onNext(
            StreamEmbedRequest.newBuilder()
                .setBatch(StreamEmbedBatch.newBuilder().addAllInputs(batch))
                .build());
      }
      requests.onCompleted();
      end.join();
    }

    @Override
    public void onNext(StreamEmbedResponse response) {
      if (response.hasReady()) {
        places.release(Math.min(WINDOW, response.getReady().getMaxInFlightInputs()));
        ready.complete(response.getReady());
        return;
      }
      for (StreamEmbedResult result : response.getResults().getResultsList()) {
        unanswered.remove(result.getId());
        if (result.hasError()) {
          System.err.printf("text %s: %s%n", result.getId(), result.getError().getMessage());
        } else {
          vectors.put(result.getId(), result.getEmbedding().getDense().getValuesList());
        }
        places.release();
      }
    }

    @Override
    public void onError(Throwable error) {
      ready.completeExceptionally(error);
      end.completeExceptionally(error);
      // Wakes the sender, which then sees that the stream has ended.
      places.release(WINDOW);
    }

    @Override
    public void onCompleted() {
      end.complete(null);
    }
  }
}
