#pragma once
// Python's pickles as data. An interpreter of the opcodes that plain containers, numbers and texts need; it
// imports nothing and calls nothing: a global is a name on a list, a call a record of name and arguments.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace eigentrace {

struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,
    real,
    text,
    tuple,
    list,
    dict,        ///< also what collections.OrderedDict() makes
    global,      ///< text: "module.name"
    call,        ///< items: a global, a tuple of arguments
    persistent,  ///< items: the persistent id
  };
  Kind kind = Kind::none;
  int64_t integer = 0;  ///< boolean too
  double real = 0;
  std::string text;
  std::vector<uint32_t> items;  ///< places in the Pickle; dict: key, value, key, value, …
};
const char* name_of(PickleValue::Kind kind);

/// The values of one pickle, protocols 2 to 5. They refer to each other by place, so that neither a list
/// inside itself nor a thousand names for one value costs anything.
class Pickle {
 public:
  static constexpr size_t max_values = size_t(1) << 20;  ///< of one pickle, memo places too

  /// Reads all of `bytes`. Errors start with `where` and name the offset: other opcodes; a global that is
  /// not in `globals` ("module.name"); a pickle that is cut, lies about lengths or goes on after its end.
  Pickle(std::string_view bytes, const std::string& where, std::span<const std::string_view> globals);

  const PickleValue& root() const { return values_[root_]; }
  const PickleValue& at(uint32_t place) const { return values_[place]; }

 private:
  using Kind = PickleValue::Kind;

  [[noreturn]] void wrong(const std::string& text) const;
  std::string_view take(uint64_t bytes);
  uint64_t number(int bytes);
  std::string_view line();
  std::string_view text_of(uint64_t bytes);

  void run();
  bool containers(uint8_t code);
  bool scalars(uint8_t code);
  bool memo(uint8_t code);
  bool objects(uint8_t code);

  void push(PickleValue value);
  void push(Kind kind, int64_t integer);
  void push(Kind kind, std::vector<uint32_t> items);
  void push_global(std::string_view module, std::string_view name);
  void call();
  uint32_t pop();
  std::vector<uint32_t> pop_to_mark();
  std::vector<uint32_t> pop_many(size_t count);
  PickleValue& top(Kind kind);
  void remember(uint64_t place);
  void recall(uint64_t place);

  std::string_view bytes_;
  const std::string& where_;
  std::span<const std::string_view> globals_;
  size_t at_ = 0, opcode_at_ = 0;
  const char* opcode_ = "";
  std::vector<PickleValue> values_;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, uint32_t> memo_;
  uint32_t root_ = 0;
};

}  // namespace eigentrace
