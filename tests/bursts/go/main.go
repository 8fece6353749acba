// Command burst makes very many calls at once on one connection and counts their outcomes.
//
//	burst HOST:PORT METHOD CALLS < request
//
// The request is read from standard input in wire form. It prints one JSON object: how many calls
// ended with each status, and how many of those that failed carried details.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// raw passes messages on as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

type outcome struct {
	Statuses map[string]int `json:"statuses"`
	Detailed int            `json:"detailed"`
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(target, method, calls string) error {
	count, err := strconv.Atoi(calls)
	if err != nil {
		return err
	}
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	result := outcome{Statuses: map[string]int{}}
	var lock sync.Mutex
	var group sync.WaitGroup
	for range count {
		group.Add(1)
		go func() {
			defer group.Done()
			var reply []byte
			err := conn.Invoke(ctx, method, &request, &reply, grpc.ForceCodecV2(raw{}))
			lock.Lock()
			defer lock.Unlock()
			result.Statuses[status.Code(err).String()]++
			if len(status.Convert(err).Proto().GetDetails()) > 0 {
				result.Detailed++
			}
		}()
	}
	group.Wait()
	return json.NewEncoder(os.Stdout).Encode(result)
}
