/* QEMU TCG plugin: counts the guest instructions executed between the markers of runtimes/native/tools/markers.h.
 *
 *   qemu-aarch64 -plugin count_plugin.so,out=FILE[,mnemonics=on][,memory=on] PROGRAM
 *
 * FILE becomes JSON: the instructions of each window, and over all windows their mnemonics and the bytes loaded and
 * stored. Exact for one guest thread: a second thread's instructions would be counted too, without atomics. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What of QEMU's plugin API, version 1 (QEMU 4.2 to 8.1), is used here; QEMU refuses a plugin of another version. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0, INLINE_ADD_U64 = 0, MEMORY_READ_WRITE = 3 };
typedef void (*vcpu_callback)(unsigned vcpu, void *data);
typedef void (*memory_callback)(unsigned vcpu, uint32_t access, uint64_t address, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, vcpu_callback, int registers, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int op, void *counter, uint64_t addend);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, memory_callback, int registers, int kinds, void *);
unsigned qemu_plugin_mem_size_shift(uint32_t access);
_Bool qemu_plugin_mem_is_store(uint32_t access);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

/* Instructions that are always executed together: a translated block, cut at the markers within. */
typedef struct segment {
    uint64_t executed, instructions;
    struct segment *next;
    int *mnemonics; /* one number per instruction */
} segment;

enum { MAX_WINDOWS = 1024, MAX_MNEMONICS = 4096 };
static segment *segments;
static uint64_t windows[MAX_WINDOWS], loaded, stored, mnemonic_counts[MAX_MNEMONICS];
static char *mnemonic_names[MAX_MNEMONICS];
static int window_count, mnemonic_count, open, with_mnemonics, with_memory;
static const char *out;

static void start(unsigned vcpu, void *data) {
    (void)vcpu, (void)data;
    for (segment *s = segments; s; s = s->next) s->executed = 0;
    open = 1;
}

static void stop(unsigned vcpu, void *data) {
    (void)vcpu, (void)data;
    if (!open || window_count == MAX_WINDOWS) return;
    open = 0;
    for (segment *s = segments; s; s = s->next) {
        windows[window_count] += s->executed * s->instructions;
        for (uint64_t i = 0; with_mnemonics && i < s->instructions; i++)
            mnemonic_counts[s->mnemonics[i]] += s->executed;
    }
    window_count++;
}

static void access_memory(unsigned vcpu, uint32_t access, uint64_t address, void *data) {
    (void)vcpu, (void)address, (void)data;
    if (open) *(qemu_plugin_mem_is_store(access) ? &stored : &loaded) += 1u << qemu_plugin_mem_size_shift(access);
}

static vcpu_callback marker(const struct qemu_plugin_insn *insn) {
    static const uint32_t starts[] = {0xd5032c9f, 0xe320f064, 0x8064f3af}, stops[] = {0xd5032cbf, 0xe320f065, 0x8065f3af};
    uint32_t word;
    if (qemu_plugin_insn_size(insn) != sizeof word) return NULL;
    memcpy(&word, qemu_plugin_insn_data(insn), sizeof word);
    for (int i = 0; i < 3; i++) {
        if (word == starts[i]) return start;
        if (word == stops[i]) return stop;
    }
    return NULL;
}

static int mnemonic(const struct qemu_plugin_insn *insn) {
    char *text = qemu_plugin_insn_disas(insn);
    if (text) text[strcspn(text, " \t")] = 0;
    const char *name = text && *text ? text : "unknown";
    int i = 0;
    while (i < mnemonic_count && strcmp(mnemonic_names[i], name)) i++;
    if (i == mnemonic_count && i < MAX_MNEMONICS - 1) mnemonic_names[mnemonic_count++] = strdup(name);
    free(text);
    return i;
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    segment *s = NULL;
    size_t count = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        vcpu_callback mark = marker(insn);
        if (mark) {
            qemu_plugin_register_vcpu_insn_exec_cb(insn, mark, NO_REGISTERS, NULL);
            s = NULL;
            continue;
        }
        if (!s) {
            s = calloc(1, sizeof *s);
            if (with_mnemonics) s->mnemonics = calloc(count - i, sizeof *s->mnemonics);
            s->next = segments, segments = s;
            qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64, &s->executed, 1);
        }
        if (with_mnemonics) s->mnemonics[s->instructions] = mnemonic(insn);
        if (with_memory) qemu_plugin_register_vcpu_mem_cb(insn, access_memory, NO_REGISTERS, MEMORY_READ_WRITE, NULL);
        s->instructions++;
    }
}

static void finish(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    FILE *file = fopen(out, "w");
    if (!file) return;
    fprintf(file, "{\"windows\": [");
    for (int i = 0; i < window_count; i++) fprintf(file, "%s%" PRIu64, i ? ", " : "", windows[i]);
    fprintf(file, "]");
    if (with_memory) fprintf(file, ", \"loaded\": %" PRIu64 ", \"stored\": %" PRIu64, loaded, stored);
    if (with_mnemonics) {
        const char *separator = ", \"mnemonics\": {";
        for (int i = 0; i < mnemonic_count; i++, separator = ", ")
            fprintf(file, "%s\"%s\": %" PRIu64, separator, mnemonic_names[i], mnemonic_counts[i]);
        fprintf(file, "}");
    }
    fprintf(file, "}\n");
    fclose(file);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) out = strdup(argv[i] + 4);
        with_mnemonics |= !strcmp(argv[i], "mnemonics=on");
        with_memory |= !strcmp(argv[i], "memory=on");
    }
    if (!out) return fprintf(stderr, "count_plugin: out=FILE is missing\n"), 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, finish, NULL);
    return 0;
}
