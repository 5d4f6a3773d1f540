/* QEMU plugin: counts executed AArch64 instructions: all, FMLA, loads and stores.
 *
 *   qemu-aarch64 -plugin ./count_instructions,... -d plugin PROGRAM
 *
 * Only QEMU's stable C ABI is used, declared here, so no QEMU headers are needed.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t PluginId;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct {
  const char *target_name;
  struct { int min, cur; } version;
} Info;
enum { ADD_U64 = 0 };

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(PluginId,
                                                  void (*)(PluginId, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *,
                                                     uint64_t);
extern void qemu_plugin_register_atexit_cb(PluginId, void (*)(PluginId, void *), void *);
extern void qemu_plugin_outs(const char *);

int qemu_plugin_version = 1;
static uint64_t total, fmla, loads, stores;

static int is_fmla(uint32_t w) {
  uint32_t by_element = w & 0xBF80F400u, vector = w & 0xBFA0FC00u;
  uint32_t half_element = w & 0xBFC0F400u, half_vector = w & 0xBFE0FC00u;
  return by_element == 0x0F801000u || vector == 0x0E20CC00u || half_element == 0x0F001000u ||
         half_vector == 0x0E400C00u;
}

static void translated(PluginId id, struct qemu_plugin_tb *block) {
  size_t count = qemu_plugin_tb_n_insns(block);
  uint64_t f = 0, l = 0, s = 0;
  (void)id;
  for (size_t i = 0; i < count; ++i) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    f += is_fmla(word);
    if ((word & 0x0A000000u) == 0x08000000u) {
      /* 128-bit vector registers put their size into the upper bit of opc, stores have it too. */
      int single = (word & 0x38000000u) == 0x38000000u;
      int load = single ? ((word >> 22) & 3) != 0 : (word >> 22) & 1;
      if (single && (word & 0x04000000u)) load = (word >> 22) & 1;
      if (load) ++l;
      else ++s;
    }
  }
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &total, count);
  if (f) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &fmla, f);
  if (l) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &loads, l);
  if (s) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &stores, s);
}

static void finished(PluginId id, void *data) {
  char line[256];
  (void)id, (void)data;
  snprintf(line, sizeof line,
           "total %" PRIu64 " fmla %" PRIu64 " load %" PRIu64 " store %" PRIu64 "\n", total, fmla,
           loads, stores);
  qemu_plugin_outs(line);
}

int qemu_plugin_install(PluginId id, const Info *info, int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
