/*
 * The life of a session as a C program sees it: smoke MODEL STORE.
 *
 * STORE is a folder that does not exist yet. Exits with 0 if everything was as it must be; else says what was not.
 */
#define _POSIX_C_SOURCE 200809L

#include <mynah.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) check((condition) != 0, #condition, __LINE__)
#define GIVES(status, call) gives((status), (call), #call, __LINE__)

static const char *const STORY = "Once upon a time";

static void fail(const char *what, int line) {
    char message[512];
    mynah_last_error(NULL, message, sizeof message);
    fprintf(stderr, "smoke.c:%d: %s\nlast error of this thread: %s\n", line, what, message);
    exit(1);
}

static void check(int is_true, const char *what, int line) {
    if (!is_true) {
        fail(what, line);
    }
}

static void gives(mynah_status expected, mynah_status found, const char *what, int line) {
    if (expected != found) {
        fprintf(stderr, "status %d, expected %d\n", (int)found, (int)expected);
        fail(what, line);
    }
}

/* Whether the newest message, of a session or with NULL of this thread, has a text in it. */
static int says(const mynah_session *session, const char *text) {
    char message[512];
    size_t len = mynah_last_error(session, message, sizeof message);
    return len < sizeof message && len == strlen(message) && strstr(message, text) != NULL;
}

/* What the store is sealed with. */
static const uint8_t KEY[32] = "thirty-two bytes of a secret key";

static mynah_session *open_session(const char *model, const char *store) {
    mynah_options *options = NULL;
    mynah_session *session = NULL;
    GIVES(MYNAH_OK, mynah_options_create(&options));
    GIVES(MYNAH_OK, mynah_options_set_model_path(options, model, strlen(model)));
    GIVES(MYNAH_OK, mynah_options_set_store_path(options, store, strlen(store)));
    GIVES(MYNAH_OK, mynah_options_set_store_key(options, KEY, sizeof KEY));
    GIVES(MYNAH_OK, mynah_options_set_device(options, MYNAH_DEVICE_CPU));
    GIVES(MYNAH_OK, mynah_options_set_threads(options, 2));
    GIVES(MYNAH_OK, mynah_options_set_seed(options, 7));
    GIVES(MYNAH_OK, mynah_options_set_context_tokens(options, 256));
    GIVES(MYNAH_OK, mynah_session_open(options, &session));
    mynah_options_free(options);
    CHECK(session != NULL);
    return session;
}

static void opens_with_its_key_only(const char *model, const char *store) {
    static const uint8_t other[32] = {1};
    mynah_options *options = NULL;
    mynah_session *session = NULL;
    GIVES(MYNAH_OK, mynah_options_create(&options));
    GIVES(MYNAH_OK, mynah_options_set_model_path(options, model, strlen(model)));
    GIVES(MYNAH_OK, mynah_options_set_store_path(options, store, strlen(store)));
    GIVES(MYNAH_STORE, mynah_session_open(options, &session));
    CHECK(says(NULL, "key"));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_options_set_store_key(options, KEY, 16));
    CHECK(says(NULL, "16 bytes"));
    GIVES(MYNAH_OK, mynah_options_set_store_key(options, other, sizeof other));
    GIVES(MYNAH_STORE, mynah_session_open(options, &session));
    CHECK(session == NULL && says(NULL, "key"));
    mynah_options_free(options);
}

static mynah_session_state state_of(mynah_session *session) {
    mynah_session_state state = {0};
    state.struct_size = sizeof state;
    GIVES(MYNAH_OK, mynah_session_status(session, &state));
    CHECK(state.struct_size == sizeof state);
    return state;
}

/* What a callback collects, and what it does meanwhile. */
typedef struct {
    mynah_session *session;
    char text[1024];
    size_t text_len;
    int pieces;
    int stop_after;
    void (*meanwhile)(mynah_session *session);
} listener;

static int32_t listen(void *user_data, const char *text, size_t text_len) {
    listener *heard = user_data;
    CHECK(heard->text_len + text_len < sizeof heard->text);
    memcpy(heard->text + heard->text_len, text, text_len);
    heard->text_len += text_len;
    heard->pieces += 1;
    if (heard->meanwhile != NULL) {
        heard->meanwhile(heard->session);
    }
    return heard->pieces == heard->stop_after;
}

static mynah_generate_report tell(listener *heard, uint32_t max_new_tokens) {
    mynah_generate_settings settings = {0};
    mynah_generate_report report = {0};
    settings.struct_size = sizeof settings;
    settings.max_new_tokens = max_new_tokens;
    report.struct_size = sizeof report;
    GIVES(MYNAH_OK,
          mynah_session_generate(heard->session, STORY, strlen(STORY), &settings, listen, heard, &report));
    return report;
}

static void generates_in_pieces(mynah_session *session) {
    listener heard = {0};
    mynah_generate_report report;
    heard.session = session;
    report = tell(&heard, 20);
    CHECK(report.stop_reason == MYNAH_STOP_REASON_MAX_NEW_TOKENS);
    CHECK(report.new_tokens == 20 && report.prompt_tokens > 0 && report.struct_size == sizeof report);
    CHECK(heard.pieces > 5);
    CHECK(strstr(heard.text, "there was a little girl") != NULL);

    memset(&heard, 0, sizeof heard);
    heard.session = session;
    heard.stop_after = 2;
    report = tell(&heard, 20);
    CHECK(report.stop_reason == MYNAH_STOP_REASON_CANCELLED);
    CHECK(heard.pieces == 2);
}

static void use_the_busy_session(mynah_session *session) {
    mynah_session_state state = {0};
    mynah_learn_report report = {0};
    mynah_progress progress = {0};
    uint64_t id = 9;
    state.struct_size = sizeof state;
    state.examples = 9;
    report.struct_size = sizeof report;
    report.steps = 9;
    progress.struct_size = sizeof progress;
    GIVES(MYNAH_BUSY, mynah_session_status(session, &state));
    GIVES(MYNAH_BUSY, mynah_session_observe(session, "a", 1, "b", 1, NULL, 0, &id));
    GIVES(MYNAH_BUSY, mynah_session_learn(session, NULL, &report));
    GIVES(MYNAH_BUSY, mynah_session_generate(session, "a", 1, NULL, listen, NULL, NULL));
    GIVES(MYNAH_BUSY, mynah_session_close(session));
    CHECK(says(NULL, "another call"));
    CHECK(id == 0 && state.examples == 0 && report.steps == 0);
    GIVES(MYNAH_OK, mynah_session_progress(session, &progress));
    CHECK(progress.phase == MYNAH_PHASE_GENERATING && progress.total == 20 && progress.done > 0);
}

static void a_callback_finds_the_session_busy(mynah_session *session) {
    listener heard = {0};
    heard.session = session;
    heard.stop_after = 1;
    heard.meanwhile = use_the_busy_session;
    tell(&heard, 20);
    CHECK(heard.pieces == 1);
}

static void *cancel_the_busy_session(void *session) {
    use_the_busy_session(session);
    GIVES(MYNAH_OK, mynah_session_cancel(session));
    return NULL;
}

static void cancel_from_another_thread(mynah_session *session) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, cancel_the_busy_session, session) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void another_thread_cancels(mynah_session *session) {
    listener heard = {0};
    mynah_generate_report report;
    mynah_progress progress = {0};
    heard.session = session;
    heard.meanwhile = cancel_from_another_thread;
    report = tell(&heard, 20);
    CHECK(report.stop_reason == MYNAH_STOP_REASON_CANCELLED);
    CHECK(heard.pieces == 1);
    progress.struct_size = sizeof progress;
    GIVES(MYNAH_OK, mynah_session_progress(session, &progress));
    CHECK(progress.phase == MYNAH_PHASE_IDLE);
}

static uint64_t teach(mynah_session *session, const char *prompt, const char *answer, const char *task) {
    uint64_t id = 0;
    GIVES(MYNAH_OK, mynah_session_observe(session, prompt, strlen(prompt), answer, strlen(answer), task,
                                          strlen(task), &id));
    return id;
}

static void is_taught_and_learns(mynah_session *session) {
    mynah_learn_budget budget = {0};
    mynah_learn_report report = {0};
    mynah_session_state state;
    budget.struct_size = sizeof budget;
    report.struct_size = sizeof report;
    GIVES(MYNAH_NOTHING_TO_LEARN, mynah_session_learn(session, &budget, &report));
    CHECK(report.stopped_by == MYNAH_STOPPED_BY_NONE);
    CHECK(says(session, "nothing to learn"));

    CHECK(teach(session, "The ball is", "red", "colours") == 1);
    CHECK(teach(session, "My name is", "Lily", "") == 2);
    state = state_of(session);
    CHECK(state.examples == 2 && state.learned == 0 && state.steps == 0 && state.device == MYNAH_DEVICE_CPU);

    GIVES(MYNAH_OK, mynah_session_cancel(session));
    GIVES(MYNAH_OK, mynah_session_learn(session, &budget, &report));
    CHECK(report.stopped_by == MYNAH_STOPPED_BY_CANCELLED && report.steps == 0);
    CHECK(report.loss != report.loss);

    budget.steps = 3;
    GIVES(MYNAH_OK, mynah_session_learn(session, &budget, &report));
    CHECK(report.stopped_by == MYNAH_STOPPED_BY_STEPS);
    CHECK(report.steps == 3 && report.steps_done == 3 && report.steps_total == 30);
    CHECK(report.loss > 0.0 && report.bytes_written > 0 && report.revision > 0);
    state = state_of(session);
    CHECK(state.steps == 3 && state.learned == 2 && state.run == 1);
    CHECK(state.revision == report.revision);
}

static void wrong_arguments_are_refused(const char *model) {
    mynah_options *options = NULL;
    mynah_session *session = (mynah_session *)(void *)&options;
    char small[4];
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_options_create(NULL));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_options_set_seed(NULL, 1));
    CHECK(says(NULL, "`options` is NULL"));
    CHECK(mynah_last_error(NULL, small, sizeof small) == strlen("`options` is NULL") && strcmp(small, "`op") == 0);

    GIVES(MYNAH_OK, mynah_options_create(&options));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_options_set_model_path(options, NULL, 3));
    GIVES(MYNAH_INVALID_UTF8, mynah_options_set_model_path(options, "mod\xff", 4));
    CHECK(says(NULL, "from byte 3"));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_options_set_device(options, 77));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_open(NULL, &session));
    CHECK(session == NULL);
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_open(options, &session));
    CHECK(says(NULL, "no model path"));
    GIVES(MYNAH_OK, mynah_options_set_model_path(options, "no-such-model.gguf", 18));
    GIVES(MYNAH_LOAD, mynah_session_open(options, &session));
    CHECK(session == NULL && says(NULL, "no-such-model.gguf"));
    GIVES(MYNAH_OK, mynah_options_set_model_path(options, model, strlen(model)));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_open(options, NULL));
    mynah_options_free(options);
    mynah_options_free(NULL);

    GIVES(MYNAH_OK, mynah_session_close(NULL));
    GIVES(MYNAH_OK, mynah_session_close(NULL));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_cancel(NULL));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_progress(NULL, NULL));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_learn(NULL, NULL, NULL));
}

static void wrong_calls_leave_a_session_usable(mynah_session *session) {
    mynah_session_state state = {0};
    mynah_generate_settings settings = {0};
    struct {
        mynah_learn_budget budget;
        uint64_t of_a_later_version;
    } later = {{0}, 1};
    uint64_t id = 9;
    listener heard = {0};
    heard.session = session;

    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_status(session, NULL));
    state.examples = 9;
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_status(session, &state));
    CHECK(says(session, "struct_size of `out_state` is 0") && state.examples == 9);
    later.budget.struct_size = sizeof later;
    later.budget.steps = 1;
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_learn(session, &later.budget, NULL));
    CHECK(says(session, "does not know"));

    GIVES(MYNAH_INVALID_UTF8, mynah_session_observe(session, "\xc3", 1, "b", 1, NULL, 0, &id));
    CHECK(id == 0 && says(session, "`prompt` is not UTF-8"));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_observe(session, "a", 1, NULL, 1, NULL, 0, &id));
    GIVES(MYNAH_WORDING, mynah_session_observe(session, "a", 1, "", 0, NULL, 0, NULL));
    GIVES(MYNAH_WORDING, mynah_session_observe(session, "a", 1, "b", 1, "line\nbreak", 10, NULL));
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_generate(session, "a", 1, NULL, NULL, NULL, NULL));
    settings.struct_size = sizeof settings;
    settings.temperature = -1.0f;
    GIVES(MYNAH_GENERATE, mynah_session_generate(session, "a", 1, &settings, listen, &heard, NULL));
    CHECK(heard.pieces == 0 && state_of(session).examples == 2);
}

static void goes_on_where_it_was_left(mynah_session *session) {
    mynah_learn_budget budget = {0};
    mynah_learn_report report = {0};
    mynah_session_state state = state_of(session);
    CHECK(state.examples == 2 && state.steps == 3 && state.run_steps_done == 3 && state.revision > 0);
    budget.struct_size = sizeof budget;
    budget.steps = 1;
    report.struct_size = sizeof report;
    GIVES(MYNAH_OK, mynah_session_learn(session, &budget, &report));
    CHECK(report.steps == 1 && report.steps_done == 4);
    CHECK(teach(session, "The hat is", "blue", "colours") == 3);
}

/* What was learned from an example goes with it, and what else was learned waits to be learned again. */
static void forgets_and_goes_back(mynah_session *session) {
    uint64_t queued = 9;
    mynah_session_state state;
    GIVES(MYNAH_STORE, mynah_session_forget(session, 77, &queued));
    CHECK(queued == 0 && state_of(session).examples == 3);
    GIVES(MYNAH_OK, mynah_session_forget(session, 3, NULL));
    CHECK(state_of(session).examples == 2 && state_of(session).learned == 2);
    GIVES(MYNAH_OK, mynah_session_forget(session, 1, &queued));
    state = state_of(session);
    CHECK(queued == 1 && state.examples == 1 && state.learned == 0 && state.revision == 0);
    GIVES(MYNAH_STORE, mynah_session_rollback(session, 77));
    GIVES(MYNAH_OK, mynah_session_rollback(session, 0));
    CHECK(state_of(session).revision > 0 && state_of(session).learned == 0);
    GIVES(MYNAH_INVALID_ARGUMENT, mynah_session_rollback(NULL, 0));
}

int main(int argc, char **argv) {
    mynah_session *session;
    if (argc != 3) {
        fprintf(stderr, "usage: smoke MODEL STORE\n");
        return 2;
    }
    CHECK(mynah_abi_version() == MYNAH_ABI_VERSION);
    CHECK(strlen(mynah_version()) >= 5);
    wrong_arguments_are_refused(argv[1]);

    session = open_session(argv[1], argv[2]);
    CHECK(mynah_last_error(session, NULL, 0) == 0);
    generates_in_pieces(session);
    a_callback_finds_the_session_busy(session);
    another_thread_cancels(session);
    is_taught_and_learns(session);
    wrong_calls_leave_a_session_usable(session);
    GIVES(MYNAH_OK, mynah_session_close(session));
    opens_with_its_key_only(argv[1], argv[2]);

    session = open_session(argv[1], argv[2]);
    goes_on_where_it_was_left(session);
    forgets_and_goes_back(session);
    GIVES(MYNAH_OK, mynah_session_close(session));
    return 0;
}
