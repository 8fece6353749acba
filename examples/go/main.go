// Embeds, streams, ranks and reads an error.
//
//	go run . [HOST:PORT]
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "example/gen/embedgrpc/v1"
)

const (
	tower  = "The tower is 330 metres tall."
	rivers = "Rivers flow to the sea."

	batchSize     = 64
	maxReconnects = 5
	// How many texts may be sent and not yet answered.
	window = 256
)

func main() {
	target := "127.0.0.1:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if err := run(target); err != nil {
		log.Fatal(err)
	}
}

func run(target string) error {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	embedding := pb.NewEmbeddingServiceClient(conn)
	if err := embed(ctx, embedding); err != nil {
		return err
	}
	if err := embedPartly(ctx, embedding); err != nil {
		return err
	}
	if err := embedMany(ctx, embedding); err != nil {
		return err
	}
	ranking := pb.NewRerankServiceClient(conn)
	if err := rerank(ctx, ranking); err != nil {
		return err
	}
	if err := streamRerank(ctx, ranking); err != nil {
		return err
	}
	_, err = embedding.Embed(ctx, &pb.EmbedRequest{
		Texts:   []string{tower, rivers},
		Options: &pb.EmbedOptions{Truncation: pb.Truncation_TRUNCATION_NONE, MaxTokens: 4},
	})
	printError(err)
	return nil
}

func embed(ctx context.Context, client pb.EmbeddingServiceClient) error {
	response, err := client.Embed(ctx, &pb.EmbedRequest{
		Texts: []string{tower, rivers},
	})
	if err != nil {
		return err
	}
	vectors := response.GetEmbeddings()
	fmt.Printf("embed: %d vectors of %d numbers, %d and %d tokens\n", len(vectors),
		vectors[0].GetDense().GetDimensions(), vectors[0].GetTokenCount(), vectors[1].GetTokenCount())
	return nil
}

// embedPartly embeds the texts that can be embedded, and reads why the other cannot.
func embedPartly(ctx context.Context, client pb.EmbeddingServiceClient) error {
	response, err := client.Embed(ctx, &pb.EmbedRequest{
		Texts:        []string{tower, ""},
		AllowPartial: true,
	})
	if err != nil {
		return err
	}
	for index, embedding := range response.GetEmbeddings() {
		if failure := embedding.GetError(); failure != nil {
			reason := strings.TrimPrefix(failure.GetReason().String(), "ERROR_REASON_")
			fmt.Printf("partial: texts[%d] %s\n", index, reason)
		}
	}
	return nil
}

// embedMany embeds 2,000 texts over as many streams as it takes.
func embedMany(ctx context.Context, client pb.EmbeddingServiceClient) error {
	unanswered := make(map[string]string)
	for number := range 2000 {
		unanswered[strconv.Itoa(number)] = fmt.Sprintf("text number %d", number)
	}
	vectors := make(map[string][]float32)
	reconnects := 0
	for {
		err := embedStream(ctx, client, unanswered, vectors)
		if err == nil {
			break
		}
		// A lost connection, and a server that is about to stop.
		if status.Code(err) != codes.Unavailable || reconnects == maxReconnects {
			return err
		}
		reconnects++
		time.Sleep(100 * time.Millisecond << reconnects)
	}
	fmt.Printf("stream: %d of 2000 texts, reconnects: %d\n", len(vectors), reconnects)
	return nil
}

// embedStream embeds texts by id over one stream. It moves each from unanswered to vectors.
func embedStream(
	ctx context.Context,
	client pb.EmbeddingServiceClient,
	unanswered map[string]string,
	vectors map[string][]float32,
) error {
	// Ends the sender and the stream when this function returns.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.StreamEmbed(ctx)
	if err != nil {
		return err
	}
	setup := &pb.StreamEmbedSetup{Order: pb.ResultOrder_RESULT_ORDER_COMPLETION}
	err = stream.Send(&pb.StreamEmbedRequest{Step: &pb.StreamEmbedRequest_Setup{Setup: setup}})
	// Send reports a broken stream as io.EOF; Recv returns the reason.
	if err != nil && err != io.EOF {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ready := first.GetReady()

	inputs := make([]*pb.StreamEmbedInput, 0, len(unanswered))
	for id, text := range unanswered {
		inputs = append(inputs, &pb.StreamEmbedInput{Id: id, Text: text})
	}
	places := make(chan struct{}, min(window, int(ready.GetMaxInFlightInputs())))
	go sendAll(stream, inputs, min(batchSize, int(ready.GetMaxBatchInputs())), places)

	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, result := range response.GetResults().GetResults() {
			<-places
			delete(unanswered, result.GetId())
			if failure := result.GetError(); failure != nil {
				log.Printf("text %s: %s", result.GetId(), failure.GetMessage())
				continue
			}
			vectors[result.GetId()] = result.GetEmbedding().GetDense().GetValues()
		}
	}
}

// sendAll sends inputs in batches and waits for a place in the window before each input.
func sendAll(
	stream grpc.BidiStreamingClient[pb.StreamEmbedRequest, pb.StreamEmbedResponse],
	inputs []*pb.StreamEmbedInput,
	size int,
	places chan<- struct{},
) {
	for len(inputs) > 0 {
		batch := inputs[:min(size, len(inputs))]
		inputs = inputs[len(batch):]
		for range batch {
			select {
			case places <- struct{}{}:
			case <-stream.Context().Done():
				return
			}
		}
		step := &pb.StreamEmbedRequest_Batch{Batch: &pb.StreamEmbedBatch{Inputs: batch}}
		if err := stream.Send(&pb.StreamEmbedRequest{Step: step}); err != nil {
			return
		}
	}
	// An error here reaches Recv too.
	_ = stream.CloseSend()
}

func rerank(ctx context.Context, client pb.RerankServiceClient) error {
	documents := []string{"It is red.", tower, rivers}
	response, err := client.Rerank(ctx, &pb.RerankRequest{
		Query:     "How tall is the tower?",
		Documents: documents,
		Options:   &pb.RerankOptions{TopN: 2},
	})
	if err != nil {
		return err
	}
	for _, ranked := range response.GetResults() {
		fmt.Printf("rerank: %.4f %s\n", ranked.GetScore(), documents[ranked.GetIndex()])
	}
	return nil
}

// streamRerank ranks the documents of two queries, which fit into the window of one stream.
func streamRerank(ctx context.Context, client pb.RerankServiceClient) error {
	queries := []string{"How tall is the tower?", "Where does the water go?"}
	documents := []string{tower, rivers}
	stream, err := client.StreamRerank(ctx)
	if err != nil {
		return err
	}
	steps := []*pb.StreamRerankRequest{
		{Step: &pb.StreamRerankRequest_Setup{Setup: &pb.StreamRerankSetup{}}},
	}
	for _, query := range queries {
		part := &pb.StreamRerankPart{Id: query, Query: query, Documents: documents}
		steps = append(steps, &pb.StreamRerankRequest{Step: &pb.StreamRerankRequest_Part{Part: part}})
	}
	for _, step := range steps {
		// Send reports a broken stream as io.EOF; Recv returns the reason.
		if err := stream.Send(step); err != nil && err != io.EOF {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	best := make(map[string]string)
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		result := response.GetResult()
		if failure := result.GetError(); failure != nil {
			log.Printf("query %s: %s", result.GetId(), failure.GetMessage())
		} else if ranking := result.GetRanking(); ranking != nil {
			best[result.GetId()] = documents[ranking.GetResults()[0].GetIndex()]
		}
	}
	for _, query := range queries {
		fmt.Println("stream rerank:", query, best[query])
	}
	return nil
}

func printError(err error) {
	failure := status.Convert(err)
	reason, fields := "", ""
	for _, detail := range failure.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = strings.TrimSpace(detail.GetReason() + " " + detail.GetMetadata()["label"])
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				fields += " " + violation.GetField()
			}
		case *errdetails.RetryInfo:
			fmt.Println("retry after", detail.GetRetryDelay().AsDuration())
		}
	}
	// codes.Code has names such as InvalidArgument; the wire and other languages have these.
	code := map[codes.Code]string{codes.InvalidArgument: "INVALID_ARGUMENT"}[failure.Code()]
	fmt.Printf("error: %s %s%s\n", code, reason, fields)
}
