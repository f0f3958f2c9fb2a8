/*
 * Mynah: a language model that runs on the device and learns from the person it talks to.
 *
 * Every call that can fail returns a mynah_status, MYNAH_OK or else; mynah_last_error has the message. Values go out through
 * pointers, which are set to 0 or NULL when a call fails. Text is UTF-8 with its length in bytes and is copied during the
 * call; NULL with length 0 is the empty text.
 *
 * Structs begin with struct_size. Set it to the size of the struct before each call; other fields of a struct that goes
 * in are zero for their defaults. Later versions add fields at the end, and only there.
 *
 * Enums may get further values in later versions.
 */

#ifndef MYNAH_H
#define MYNAH_H

/* Made by cbindgen from ffi/src. Do not edit. */

#include <stddef.h>
#include <stdint.h>

// Version of this interface. It grows when a program built against an older header would no longer work.
#define MYNAH_ABI_VERSION 1

// How a call ended. Numbers are grouped, never change their meaning and are never used again; unknown ones are
// failures.
enum mynah_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // It did what it says.
    MYNAH_OK = 0,
    // A pointer is NULL that must not be, a struct_size is wrong, or a number is none of those that are allowed.
    MYNAH_INVALID_ARGUMENT = 1,
    // A text is not UTF-8.
    MYNAH_INVALID_UTF8 = 2,
    // A setting of generating or learning is out of range.
    MYNAH_SETTING = 3,
    // Another call on this session is running, perhaps the one that this callback belongs to.
    MYNAH_BUSY = 20,
    // A call on this session panicked before. It can only be closed.
    MYNAH_POISONED = 21,
    // This call panicked. The session can only be closed; what was stored before is kept.
    MYNAH_PANIC = 22,
    // Someone cancelled, and the call has no result to give.
    MYNAH_CANCELLED = 23,
    // The model file cannot be used.
    MYNAH_LOAD = 40,
    // The model's vocabulary cannot be used.
    MYNAH_TOKENIZER = 41,
    // The store cannot be opened, read or written.
    MYNAH_STORE = 42,
    // An adapter cannot be made, read or written.
    MYNAH_ADAPTER = 43,
    // The store's adapters have another form.
    MYNAH_OTHER_LORA = 44,
    // A text or an interaction cannot be put into tokens: empty, too long, or refused by the chat template.
    MYNAH_WORDING = 60,
    // Text could not be generated: an empty prompt, or one longer than the context.
    MYNAH_GENERATE = 61,
    // A step of learning failed.
    MYNAH_LEARN = 62,
    // No example is waiting to be learned.
    MYNAH_NOTHING_TO_LEARN = 63,
    // A text is too short to be scored.
    MYNAH_TEXT_TOO_SHORT = 64,
    // The device failed.
    MYNAH_DEVICE = 80,
    // The system gives no more threads.
    MYNAH_THREADS = 81,
    // A failure that this interface has no number for; the message says what it is.
    MYNAH_OTHER = 100,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_status mynah_status;
#else
typedef int32_t mynah_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why generating ended.
enum mynah_stop_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // It never began: the call failed.
    MYNAH_STOP_REASON_NONE = 0,
    // The model ended its answer.
    MYNAH_STOP_REASON_END_OF_GENERATION = 1,
    // There are as many new tokens as asked for.
    MYNAH_STOP_REASON_MAX_NEW_TOKENS = 2,
    // One of the strings that end a text came up.
    MYNAH_STOP_REASON_STOP_STRING = 3,
    // Someone cancelled, or the callback stopped it.
    MYNAH_STOP_REASON_CANCELLED = 4,
    // The context has no room for another token.
    MYNAH_STOP_REASON_CONTEXT_FULL = 5,
    // For a reason that this interface has no number for.
    MYNAH_STOP_REASON_OTHER = 100,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_stop_reason mynah_stop_reason;
#else
typedef int32_t mynah_stop_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where a session computes.
enum mynah_device
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // The CPU.
    MYNAH_DEVICE_CPU = 0,
    // The GPU; where there is none, or the library was built without it, the CPU.
    MYNAH_DEVICE_GPU = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_device mynah_device;
#else
typedef int32_t mynah_device;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a session is doing.
enum mynah_phase
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Nothing.
    MYNAH_PHASE_IDLE = 0,
    // Generating; counted in pieces of new text.
    MYNAH_PHASE_GENERATING = 1,
    // Storing examples; counted in examples.
    MYNAH_PHASE_OBSERVING = 2,
    // Learning; counted in steps of the run.
    MYNAH_PHASE_LEARNING = 3,
    // Being scored; counted in examples or windows.
    MYNAH_PHASE_EVALUATING = 4,
    // Something that this interface has no number for.
    MYNAH_PHASE_OTHER = 100,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_phase mynah_phase;
#else
typedef int32_t mynah_phase;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why learning ended.
enum mynah_stopped_by
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // It never began: the call failed.
    MYNAH_STOPPED_BY_NONE = 0,
    // The run has all its steps.
    MYNAH_STOPPED_BY_FINISHED = 1,
    // The time is spent.
    MYNAH_STOPPED_BY_TIME = 2,
    // The steps are taken.
    MYNAH_STOPPED_BY_STEPS = 3,
    // One more commit would write too many bytes.
    MYNAH_STOPPED_BY_BYTES = 4,
    // Someone cancelled; the step in hand was dropped, all before it are kept.
    MYNAH_STOPPED_BY_CANCELLED = 5,
    // For a reason that this interface has no number for.
    MYNAH_STOPPED_BY_OTHER = 100,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_stopped_by mynah_stopped_by;
#else
typedef int32_t mynah_stopped_by;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How exactly the CPU computes.
enum mynah_precision
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // In bf16 and 8 bits where the processor has instructions for them.
    MYNAH_PRECISION_FAST = 0,
    // In f32 on the weights as they are.
    MYNAH_PRECISION_EXACT = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_precision mynah_precision;
#else
typedef int32_t mynah_precision;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How prompts and answers become the text that the model sees.
enum mynah_prompt_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // As Chat where the model has a chat template, else as Raw.
    MYNAH_PROMPT_FORMAT_AUTO = 0,
    // As a question and its answer in the model's chat template.
    MYNAH_PROMPT_FORMAT_CHAT = 1,
    // As they are: the prompt, one space, the answer.
    MYNAH_PROMPT_FORMAT_RAW = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mynah_prompt_format mynah_prompt_format;
#else
typedef int32_t mynah_prompt_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a session is opened with. One thread at a time may use it.
typedef struct mynah_options mynah_options;

// A model with its adapters and its store.
//
// It does one thing at a time, on the thread that calls: a call that comes while another one runs, or from a callback,
// gives MYNAH_BUSY and does nothing. Only mynah_session_cancel, mynah_session_progress and mynah_last_error may come
// at any time and from any thread.
typedef struct mynah_session mynah_session;

// How text is generated. Zero means the default in every field but the first.
typedef struct {
    // sizeof(mynah_generate_settings)
    uint32_t struct_size;
    // New tokens at most. Default 256.
    uint32_t max_new_tokens;
    // Divisor of the logits. Default: the likeliest token is taken.
    float temperature;
    // How many of the likeliest tokens can be chosen. Default: all.
    uint32_t top_k;
    // The likeliest tokens that have this probability together can be chosen. Default 1: all.
    float top_p;
    // Tokens with less than this share of the likeliest one's probability cannot be chosen. Default: none.
    float min_p;
    // Positive logits of recent tokens are divided by it, negative ones multiplied. Default 1: off.
    float repetition_penalty;
    // How many of the newest tokens count as recent. Default 64.
    uint32_t repetition_window;
    // Where the random draws start. Default 0.
    uint64_t seed;
} mynah_generate_settings;

// Receives new text: whole characters, `text_len` bytes without a NUL at the end, valid during the call. Returns 0 to
// go on, anything else to stop. It runs on the thread that called, must not throw or jump out, and may cancel, but not
// use the session otherwise.
typedef int32_t (*mynah_text_callback)(void *user_data,
                                       const char *text,
                                       size_t text_len);

// What was generated.
typedef struct {
    // sizeof(mynah_generate_report)
    uint32_t struct_size;
    // Why it ended.
    mynah_stop_reason stop_reason;
    // Tokens of the new text.
    uint64_t new_tokens;
    // Tokens of the prompt.
    uint64_t prompt_tokens;
    // How many of those had been computed before.
    uint64_t reused_tokens;
    // Microseconds until the prompt was computed.
    uint64_t prefill_us;
    // Microseconds from there to the end, the callbacks included.
    uint64_t decode_us;
} mynah_generate_report;

// What a session has and has learned.
typedef struct {
    // sizeof(mynah_session_state)
    uint32_t struct_size;
    // Where it computes, which is the CPU where a GPU was asked for and there is none.
    mynah_device device;
    // Number of the newest revision; 0 before the first, or without a store.
    uint64_t revision;
    // Examples that are stored.
    uint64_t examples;
    // Tokens of those.
    uint64_t tokens;
    // Examples that steps have trained on.
    uint64_t learned;
    // Examples that can be replayed.
    uint64_t remembered;
    // Steps of all runs.
    uint64_t steps;
    // Number of the newest run, from 1; 0 before the first.
    uint64_t run;
    // Steps that the newest run has behind it.
    uint64_t run_steps_done;
    // Steps that it has in all; with as many behind it, it is finished.
    uint64_t run_steps_total;
    // Bytes of examples and revisions in the store.
    uint64_t bytes;
} mynah_session_state;

// How far the call in hand is. The numbers may be of neighbouring moments.
typedef struct {
    // sizeof(mynah_progress)
    uint32_t struct_size;
    // What is being done.
    mynah_phase phase;
    // How many of `total` are done.
    uint64_t done;
    // How many there are; 0 where that is not known.
    uint64_t total;
    // Loss of the newest step, NaN before the first.
    double loss;
} mynah_progress;

// Limits of one call of mynah_session_learn. Zero means no limit.
typedef struct {
    // sizeof(mynah_learn_budget)
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // Steps.
    uint64_t steps;
    // Wall-clock time; at least one step is taken.
    uint64_t milliseconds;
    // Bytes written to the store.
    uint64_t bytes;
} mynah_learn_budget;

// What one call of mynah_session_learn did.
typedef struct {
    // sizeof(mynah_learn_report)
    uint32_t struct_size;
    // Why it ended.
    mynah_stopped_by stopped_by;
    // Steps of this call.
    uint64_t steps;
    // Steps that the run has behind it.
    uint64_t steps_done;
    // Steps that the run has in all.
    uint64_t steps_total;
    // Mean loss of the last steps of this call, at most 10; NaN where no step was taken.
    double loss;
    // The process's largest resident size so far; 0 where the system does not tell.
    uint64_t peak_bytes;
    // Bytes written to the store in this call.
    uint64_t bytes_written;
    // Number of the newest revision; 0 before the first, or without a store.
    uint64_t revision;
    // Wall-clock time of this call.
    uint64_t elapsed_ms;
} mynah_learn_report;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The interface version of this library, to be held against MYNAH_ABI_VERSION of the header.
uint32_t mynah_abi_version(void);

// The version of this library in words, such as "0.1.0". The text lives as long as the library.
const char *mynah_version(void);

// Makes options, all at their defaults. Free them with mynah_options_free.
//
// # Safety
// `out_options` is NULL or points to a pointer.
mynah_status mynah_options_create(mynah_options **out_options);

// Frees options. NULL does nothing. Sessions opened with them stay open.
//
// # Safety
// `options` is NULL, or came from mynah_options_create and is not used again.
void mynah_options_free(mynah_options *options);

// Sets the model: the path of a GGUF file. There is no default.
//
// # Safety
// `options` is NULL or live. `path` has `path_len` bytes.
mynah_status mynah_options_set_model_path(mynah_options *options,
                                          const char *path,
                                          size_t path_len);

// Sets the folder that keeps what is taught and learned; it is made if it is not there. Default: none, nothing is
// kept.
//
// # Safety
// `options` is NULL or live. `path` has `path_len` bytes.
mynah_status mynah_options_set_store_path(mynah_options *options,
                                          const char *path,
                                          size_t path_len);

// Sets the key that what is taught is sealed with: 32 bytes, which are copied, and wiped when the options and the sessions
// opened with them are freed. A sealed store opens with its key only; without it, nothing can be had back. Default, and NULL
// with a length of 0: no key, nothing is encrypted.
//
// # Safety
// `options` is NULL or live. `key` has `key_len` bytes.
mynah_status mynah_options_set_store_key(mynah_options *options,
                                         const uint8_t *key,
                                         size_t key_len);

// Sets where to compute, a mynah_device. Default: MYNAH_DEVICE_CPU.
//
// # Safety
// `options` is NULL or live.
mynah_status mynah_options_set_device(mynah_options *options,
                                      int32_t device);

// Sets how exactly the CPU computes, a mynah_precision. Default: MYNAH_PRECISION_FAST.
//
// # Safety
// `options` is NULL or live.
mynah_status mynah_options_set_precision(mynah_options *options,
                                         int32_t precision);

// Sets how prompts are put, a mynah_prompt_format. Default: MYNAH_PROMPT_FORMAT_AUTO.
//
// # Safety
// `options` is NULL or live.
mynah_status mynah_options_set_prompt_format(mynah_options *options,
                                             int32_t prompt_format);

// Sets the number of threads to compute on. Default, and 0: one per core.
//
// # Safety
// `options` is NULL or live.
mynah_status mynah_options_set_threads(mynah_options *options,
                                       uint32_t threads);

// Sets where the randomness of adapters and learning starts. Default 0. Sampling has a seed of its own.
//
// # Safety
// `options` is NULL or live.
mynah_status mynah_options_set_seed(mynah_options *options,
                                    uint64_t seed);

// Sets how many tokens prompt and answer can have together, at most what the model was made for. Default, and 0: 2048.
//
// # Safety
// `options` is NULL or live.
mynah_status mynah_options_set_context_tokens(mynah_options *options,
                                              uint32_t context_tokens);

// Loads the model, opens the store and takes up where it was left. The options can be freed afterwards.
//
// # Safety
// `options` is NULL or live. `out_session` is NULL or points to a pointer.
mynah_status mynah_session_open(const mynah_options *options,
                                mynah_session **out_session);

// Closes a session; NULL does nothing. While a call runs it gives MYNAH_BUSY, and the session stays open: cancel
// first, and close when the call has returned.
//
// # Safety
// `session` is NULL or open. After MYNAH_OK no thread uses it again, and none begins to while this call runs.
mynah_status mynah_session_close(mynah_session *session);

// Answers a prompt. Every new piece of text goes to `callback`, with `user_data` passed through.
//
// `settings` may be NULL for the defaults, `out_report` may be NULL. A cancelled call gives MYNAH_OK, and
// MYNAH_STOP_REASON_CANCELLED in the report.
//
// # Safety
// `session` is NULL or open. `prompt` has `prompt_len` bytes. `settings` and `out_report` are NULL or have the bytes
// that their struct_size says. `callback` can be called with `user_data`.
mynah_status mynah_session_generate(mynah_session *session,
                                    const char *prompt,
                                    size_t prompt_len,
                                    const mynah_generate_settings *settings,
                                    mynah_text_callback callback,
                                    void *user_data,
                                    mynah_generate_report *out_report);

// Stores what the model should have answered; it is learned by the next mynah_session_learn. Durable on return, where
// the session has a store.
//
// `task` says what it belongs to, 1 to 64 bytes; with length 0 it is "chat". `out_example_id` may be NULL; ids count
// from 1.
//
// # Safety
// `session` is NULL or open. Each text has as many bytes as its length says. `out_example_id` is NULL or points to a
// number.
mynah_status mynah_session_observe(mynah_session *session,
                                   const char *prompt,
                                   size_t prompt_len,
                                   const char *answer,
                                   size_t answer_len,
                                   const char *task,
                                   size_t task_len,
                                   uint64_t *out_example_id);

// Forgets one example: erases it from the store, with every revision that learned from it. On return what is served is the
// newest state that never saw it.
//
// What those revisions had learned from other examples is learned again by the next mynah_session_learn; how many examples
// that is goes to `out_queued`, which may be NULL.
//
// # Safety
// `session` is NULL or open. `out_queued` is NULL or points to a number.
mynah_status mynah_session_forget(mynah_session *session,
                                  uint64_t example_id,
                                  uint64_t *out_queued);

// Goes back to an earlier revision, as a new one; 0 is before anything was learned. Examples stay; what was learned since
// counts as not yet learned.
//
// # Safety
// `session` is NULL or open.
mynah_status mynah_session_rollback(mynah_session *session,
                                    uint64_t revision);

// Tells what a session has and has learned.
//
// # Safety
// `session` is NULL or open. `out_state` is NULL or has the bytes that its struct_size says.
mynah_status mynah_session_status(const mynah_session *session,
                                  mynah_session_state *out_state);

// Ends the call in hand within a fraction of a second, or the next one at once if there is none. Does not wait for it.
// May be called from any thread and from a callback.
//
// # Safety
// `session` is NULL or open.
mynah_status mynah_session_cancel(const mynah_session *session);

// Tells how far the call in hand is. Does not wait for it. May be called from any thread and from a callback.
//
// # Safety
// `session` is NULL or open. `out_progress` is NULL or has the bytes that its struct_size says.
mynah_status mynah_session_progress(const mynah_session *session,
                                    mynah_progress *out_progress);

// Learns what was observed and not learned yet, until it is learned, the budget is spent, or someone cancels. A run
// that is not finished goes on in the next call. After each step the state is in the store, where the session has one.
//
// `budget` may be NULL for no limit, `out_report` may be NULL. A cancelled call gives MYNAH_OK, and
// MYNAH_STOPPED_BY_CANCELLED in the report. With nothing to learn it gives MYNAH_NOTHING_TO_LEARN.
//
// # Safety
// `session` is NULL or open. `budget` and `out_report` are NULL or have the bytes that their struct_size says.
mynah_status mynah_session_learn(mynah_session *session,
                                 const mynah_learn_budget *budget,
                                 mynah_learn_report *out_report);

// The message of the newest failure: with a session, of that session's calls on any thread; with NULL, of any call on
// this thread. MYNAH_BUSY is kept on the thread only. Success does not clear it; before the first failure it is empty.
//
// Returns the message's length in bytes without the terminating NUL. At most `buffer_len - 1` bytes of it are copied,
// whole characters only, and a NUL is put after them. With NULL for `buffer` or 0 for `buffer_len` nothing is copied.
// May be called from any thread while another call runs.
//
// # Safety
// `session` is NULL or open. `buffer` is NULL or has room for `buffer_len` bytes.
size_t mynah_last_error(const mynah_session *session,
                        char *buffer,
                        size_t buffer_len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MYNAH_H */
