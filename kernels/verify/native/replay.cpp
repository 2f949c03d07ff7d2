// Runs recorded kernel calls on one instruction set and writes what they wrote.
//
//     replay ISA THREADS CALLS RESULTS
//
// CALLS and RESULTS are laid out as calls.py says. Every buffer is an allocation of its own, exactly
// as large as the tensor and no better aligned than its elements are, so that a sanitizer sees the
// first byte too far and an aligned load of a tensor that promises no alignment faults.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "abi.h"

namespace {

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "replay: %s\n", why.c_str());
  std::exit(2);
}

struct Reader {
  std::FILE* file;
  bool more() {
    int c = std::fgetc(file);
    return c != EOF && std::ungetc(c, file) != EOF;
  }
  void bytes(void* to, size_t n) {
    if (n && std::fread(to, 1, n, file) != n) fail("the file of calls ends too early");
  }
  template <class T>
  T one() {
    T a;
    bytes(&a, sizeof a);
    return a;
  }
  std::vector<char> run() {
    std::vector<char> a(one<uint32_t>());
    bytes(a.data(), a.size());
    return a;
  }
};

struct Buffer {
  void* memory = nullptr;
  char* data = nullptr;
  std::vector<char> before;

  void read(Reader& in) {
    in.one<char>();  // the letter of its dtype
    size_t element = in.one<uint8_t>();
    before = in.run();
    memory = std::malloc(before.size() + element);
    data = static_cast<char*>(memory) + element;
    if (!before.empty()) std::memcpy(data, before.data(), before.size());
  }
  bool changed() const {
    return !before.empty() && std::memcmp(data, before.data(), before.size()) != 0;
  }
};

struct Argument {
  int64_t whole = 0;
  double real = 0;
  void* address = nullptr;
  std::vector<char> fields;

  void read(Reader& in, const std::vector<Buffer>& buffers) {
    char kind = in.one<char>();
    if (kind == 'i') whole = in.one<int64_t>();
    else if (kind == 'f') real = in.one<double>();
    else if (kind == 'b') address = buffers.at(in.one<uint32_t>()).data;
    else if (kind == 's') read_struct(in, buffers);
    else if (kind != '0') fail("unknown kind of argument");
  }
  void read_struct(Reader& in, const std::vector<Buffer>& buffers) {
    fields = in.run();
    for (uint32_t n = in.one<uint32_t>(); n; --n) {
      uint32_t at = in.one<uint32_t>(), buffer = in.one<uint32_t>();
      std::memcpy(&fields.at(at), &buffers.at(buffer).data, sizeof(void*));
    }
    address = fields.data();
  }
  template <class T>
  T as() const {
    if constexpr (std::is_pointer_v<T>) return static_cast<T>(address);
    else if constexpr (std::is_floating_point_v<T>) return T(real);
    else return T(whole);
  }
};

template <class... A, size_t... I>
int32_t call(int32_t (*kernel)(A...), const std::vector<Argument>& given,
             std::index_sequence<I...>) {
  if (given.size() != sizeof...(A)) fail("a call has another number of arguments than its kernel");
  return kernel(given[I].as<A>()...);
}

template <class... A>
int32_t call(int32_t (*kernel)(A...), const std::vector<Argument>& given) {
  return call(kernel, given, std::index_sequence_for<A...>{});
}

int32_t dispatch(const Kernels& kernels, const std::string& name,
                 const std::vector<Argument>& given) {
#define KERNEL(op) \
  if (name == #op) return call(kernels.op, given);
#include "kernels.inc"
  fail("no kernel is called " + name);
}

void write_results(std::FILE* to, int32_t status, const std::vector<Buffer>& buffers) {
  uint32_t n = 0;
  for (const Buffer& buffer : buffers) n += buffer.changed();
  std::fwrite(&status, sizeof status, 1, to);
  std::fwrite(&n, sizeof n, 1, to);
  for (uint32_t i = 0; i < buffers.size(); ++i) {
    if (!buffers[i].changed()) continue;
    std::fwrite(&i, sizeof i, 1, to);
    std::fwrite(buffers[i].data, 1, buffers[i].before.size(), to);
  }
}

void replay(Reader& in, const Kernels& kernels, std::FILE* to) {
  std::vector<char> name = in.run();
  std::vector<Buffer> buffers(in.one<uint32_t>());
  for (Buffer& buffer : buffers) buffer.read(in);
  std::vector<Argument> given(in.one<uint32_t>());
  for (Argument& argument : given) argument.read(in, buffers);
  int32_t status = dispatch(kernels, std::string(name.begin(), name.end()), given);
  write_results(to, status, buffers);
  for (Buffer& buffer : buffers) std::free(buffer.memory);
}

}  // namespace

int main(int count, char** word) {
  if (count != 5) fail("expected ISA THREADS CALLS RESULTS");
  const Kernels* kernels = gw_kernels(word[1]);
  if (!kernels) fail(std::string(word[1]) + " is not among " + gw_isas());
  gw_set_threads(std::atoi(word[2]));
  Reader in{std::fopen(word[3], "rb")};
  std::FILE* to = std::fopen(word[4], "wb");
  if (!in.file || !to) fail("a file cannot be opened");
  int64_t calls = 0;
  for (; in.more(); ++calls) replay(in, *kernels, to);
  std::fclose(to);
  std::printf("%lld calls on %s\n", static_cast<long long>(calls), kernels->isa);
}
