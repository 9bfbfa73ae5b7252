// The files in data/pth are PyTorch's own (make_pth.py); the hostile ones are made here.
#include <cmath>
#include <cstring>
#include <map>

#include "nn/checkpoint.h"
#include "nn/import.h"
#include "tensor/io/pickle.h"
#include "tensor/io/pth.h"
#include "tests/nn/model_testing.h"
#include "tests/pth_testing.h"
#include "tests/tensor/io_testing.h"

using namespace eigentrace;

namespace {

const std::string folder = std::string(EIGENTRACE_TEST_DATA) + "/nn/data/pth/";

using Tensors = std::map<std::string, HostArray>;
using Ints = std::vector<int64_t>;

Tensors read(const std::string& path) {
  const PthFile file = read_pth(path);
  Tensors tensors(file.tensors.begin(), file.tensors.end());
  CHECK(tensors.size() == file.tensors.size());
  return tensors;
}

template <class T>
std::vector<T> values(const HostArray& array) {
  return {array.as<T>().begin(), array.as<T>().end()};
}

/// first, first + 1/8, …: what make_pth.py fills tensors with.
std::vector<double> numbered(int64_t count, double first) {
  std::vector<double> out;
  for (int64_t i = 0; i < count; i++) out.push_back(first + double(i) / 8);
  return out;
}

/// The model of make_pth.py.
const std::string options =
    R"({"layer": "transformer", "attention_fn": "norm-attention", "norm_fn": "softplus", "offset": true, )"
    R"("offset_init": "exp", "dim_conv": 3, "num_layers": 1, "hidden_dim": 4, "state_dim": 2, )"
    R"("num_heads": 2, "mixer": "none", "vocab_size": 5, "output_dim": 5)";
std::unique_ptr<Model> model_of(const std::string& more = "") {
  return make_model(read_model_config(options + more + "}"), 1, DType::f32);
}

/// In the order of make_pth.py, which is the order of construction in PyTorch.
const std::vector<std::string> names = {"encoder.word_embeddings.weight",
                                        "layers.0.norm.weight",
                                        "layers.0.norm.bias",
                                        "layers.0.attention.Wvqkn.weight",
                                        "layers.0.attention.Wvqkn.bias",
                                        "layers.0.attention.conv1d.weight",
                                        "layers.0.attention.conv1d.bias",
                                        "layers.0.attention.inner_attn.offset",
                                        "layers.0.attention.out_proj.weight",
                                        "layers.0.attention.out_proj.bias",
                                        "norm.weight",
                                        "norm.bias",
                                        "decoder.weight"};

/// Reads a file of these bytes: "" or the error, which must name the file.
std::string error_of_bytes(const std::string& bytes, uint64_t max_bytes = 1 << 20) {
  const TestFolder test;
  write_atomically(test / "bad.pth", bytes);
  std::string message = error_of([&] { read_pth(test / "bad.pth", max_bytes); });
  CHECK((message.empty() || contains(message, "bad.pth")));
  return message;
}

const std::vector<std::string> storages = {std::string(24, '\0'), std::string(16, '\0')};
std::string error_of_pickle(const std::string& pickle, uint64_t max_bytes = 1 << 20) {
  return error_of_bytes(pth_of(pickle, storages), max_bytes);
}
std::string error_of_value(const std::string& value) { return error_of_pickle(py_file(value)); }
std::string error_of_tensor(const PyTensor& tensor) {
  return error_of_value(py_dict({{"w", py_tensor(tensor)}}));
}

}  // namespace

TEST_CASE("pth: every type, layout and protocol of torch.save is read") {
  for (const char* name : {"layouts.pth", "layouts_protocol_4.pth"}) {
    CAPTURE(name);
    const Tensors t = read(folder + name);
    CHECK(t.size() == 15);
    const auto is = [&](const char* key, const Ints& shape, const std::vector<float>& expected) {
      CAPTURE(key);
      REQUIRE(t.count(key));
      CHECK(t.at(key).shape == shape);
      CHECK(values<float>(t.at(key)) == expected);
    };
    const auto eighths = [](const std::vector<int>& counts) {
      std::vector<float> out;
      out.reserve(counts.size());
      for (const int c : counts) out.push_back(float(c) / 8);
      return out;
    };
    CHECK(t.at("whole").count() == 30);
    CHECK(t.at("transposed").shape == Ints{5, 6});
    CHECK(values<float>(t.at("transposed"))[7] == 0.125f * 6);
    is("rows", {2, 5}, eighths({10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
    is("every_second", {3, 2}, eighths({1, 3, 11, 13, 21, 23}));
    is("expanded", {2, 3}, eighths({5, 6, 7, 5, 6, 7}));
    is("scalar", {}, eighths({18}));
    is("empty", {0, 5}, {});
    is("parameter", {2, 3}, eighths({-8, -7, -6, -5, -4, -3}));
    is("half", {7}, {0.0f, -0.0f, 1.5f, -2.25f, 65504.0f, 0x1p-24f, INFINITY});
    CHECK(std::signbit(values<float>(t.at("half"))[1]));
    is("bfloat16", {3}, {1.5f, -3.0f, 0x1p100f});
    CHECK(values<double>(t.at("double")) == std::vector<double>{0.1, -1e300});
    CHECK(values<int64_t>(t.at("long")) == Ints{int64_t(1) << 40, -2});
    CHECK(values<int32_t>(t.at("int")) == std::vector<int32_t>{7, -8});
    CHECK(values<uint8_t>(t.at("byte")) == std::vector<uint8_t>{0, 255});
    CHECK(values<uint8_t>(t.at("bool")) == std::vector<uint8_t>{1, 0});
  }
}

TEST_CASE("pth: import takes a bare state_dict and a trainer's file into the same weights") {
  for (const char* name : {"state_dict.pth", "trainer.pth"}) {
    CAPTURE(name);
    const std::unique_ptr<Model> model = model_of();
    const ImportReport report = import_pth(folder + name, *model);
    CHECK(report.tensors == int64_t(names.size()));
    CHECK(report.left_out == std::vector<std::string>{"encoder.position_ids"});
    CHECK(report.not_finite.empty());
    CHECK(report.ignored.size() == (std::string(name) == "trainer.pth" ? 8 : 0));
    CHECK(model->parameters().parameters().size() == names.size());
    for (size_t i = 0; i < names.size(); i++) {
      CAPTURE(names[i]);
      const Parameter* p = model->parameters().find(names[i]);
      REQUIRE(p);
      CHECK(p->value.to_vector<double>() == numbered(p->value.numel(), double(i)));
    }
  }
}

TEST_CASE("pth: tensors that are missing, unknown or misshapen are named, and nothing is changed") {
  const auto says = [](const std::string& more) {
    const std::unique_ptr<Model> model = model_of(more);
    const std::vector<double> before = model->parameters().find("norm.bias")->value.to_vector<double>();
    std::string message = error_of([&] { import_pth(folder + "state_dict.pth", *model); });
    CHECK(model->parameters().find("norm.bias")->value.to_vector<double>() == before);
    return message;
  };
  std::string message = says(R"(, "use_gate": true)");
  CHECK(contains(message, "2 missing: layers.0.Wz.bias, layers.0.Wz.weight;"));
  CHECK_FALSE(contains(message, "does not have"));
  message = error_of([] {
    const auto model = make_model(read_model_config(R"({"layer": "mamba", "num_layers": 1, "hidden_dim": 4,
        "state_dim": 2, "num_heads": 2, "vocab_size": 5, "output_dim": 5, "token_embedding": true,
        "version": "mamba2", "pseudoLTI": true, "conv_dim": 3, "pooling": "none"})"),
                                  1, DType::f32);
    import_pth(folder + "state_dict.pth", *model);
  });
  CHECK(contains(message, "blocks.0.mamba.dt_bias"));
  CHECK_FALSE(contains(message, "beta"));
  CHECK(contains(message, "11 the model does not have: layers.0.norm.weight"));
  CHECK_FALSE(contains(message, "position_ids"));
  message = error_of([] {
    std::string other = options;
    other.replace(other.find(R"("output_dim": 5)"), 15, R"("output_dim": 6)");
    import_pth(folder + "state_dict.pth", *make_model(read_model_config(other + "}"), 1, DType::f32));
  });
  CHECK(contains(message, "1 of another shape: decoder.weight ([5, 4] in the file, [6, 4] in the model);"));
  const TestFolder test;
  write_atomically(
      test / "a.pth",
      pth_of(py_file(py_dict({{"norm.bias", py_tensor({"LongStorage", "0", 3, 0, {4}, {0}})}})), storages));
  message = error_of([&] { import_pth(test / "a.pth", *model_of()); });
  CHECK(contains(message, "1 of integers: norm.bias (i64)"));
}

TEST_CASE("pth: weights that are not finite are imported and named") {
  const TestFolder test;
  std::vector<std::pair<std::string, std::string>> state;
  const std::unique_ptr<Model> model = model_of();
  for (const Parameter& p : model->parameters().parameters()) {
    const Ints shape = p.value.shape().to_vector();
    state.emplace_back(p.name, py_tensor({"DoubleStorage", p.name == "norm.bias" ? "1" : "0",
                                          p.name == "norm.bias" ? 2 : 3, 0, shape, Ints(shape.size(), 0)}));
  }
  const double huge = 1e300;  // no float32
  std::string second(16, '\0');
  std::memcpy(second.data(), &huge, 8);
  write_atomically(test / "a.pth", pth_of(py_file(py_dict(state)), {storages[0], second}));
  CHECK(import_pth(test / "a.pth", *model).not_finite == std::vector<std::string>{"norm.bias"});
}

TEST_CASE("pth: what is no state_dict is refused with a way out") {
  CHECK(contains(error_of([] { read_pth(folder + "before_1_6.pth"); }), "convert it in Python"));
  const std::string module = error_of([] { read_pth(folder + "module.pth"); });
  CHECK(contains(module,
                 "GLOBAL: expected a global of tensors and dicts, found "
                 "\"torch.nn.modules.linear.Linear\""));
  CHECK(contains(module, "save model.state_dict() alone"));
  CHECK(contains(error_of_value(py_tensor()), "expected a state_dict (a dict), found call"));
  CHECK(contains(error_of_value("}"), "found no tensors"));
  CHECK(contains(error_of_value(py_dict({{"model", py_dict({{"w", py_tensor()}})}, {"state_dict", "}"}})),
                 "expected one of the keys"));
  CHECK(contains(error_of_value(py_dict({{"module.w", py_tensor()}, {"_orig_mod.w", py_tensor()}})),
                 "expected each name once, found \"w\" twice"));
  CHECK(contains(error_of_value("}" + py_int(1) + py_tensor() + "s"), "expected a tensor's name, found int"));
  CHECK(contains(error_of_bytes(stored_zip({{"x", ""}})), "expected a member NAME/data.pkl"));
  CHECK(contains(error_of_bytes(stored_zip({{"a/data.pkl", ""}, {"b/data.pkl", ""}})), "found two"));
  CHECK(contains(error_of_bytes(stored_zip({{"a/constants.pkl", ""}})), "TorchScript"));
  CHECK(contains(error_of_bytes(stored_zip({{"a/byteorder", "big"}})), "little-endian"));
  CHECK(contains(error_of_bytes("neither"), "expected a zip's end record"));
  CHECK(error_of_value(py_dict({{"w", py_tensor()}})).empty());
}

TEST_CASE("pth: a pickle's numbers keep value and sign at every width") {
  const auto root = [](const std::string& opcodes) {
    const std::string where = "test", bytes = py_file(opcodes);
    PickleValue value = Pickle(bytes, where, {}).root();
    CHECK((value.kind == PickleValue::Kind::integer || value.kind == PickleValue::Kind::real));
    return value;
  };
  CHECK(root("K\xFF").integer == 255);
  CHECK(root("M\xFE\xFF").integer == 65534);
  CHECK(root("J\xFE\xFF\xFF\xFF").integer == -2);
  CHECK(root(std::string("\x8A\0", 2)).integer == 0);
  CHECK(root("\x8A\x01\x80").integer == -128);
  CHECK(root(std::string("\x8A\x02\x80\0", 4)).integer == 128);
  CHECK(root(std::string("\x8A\x06\0\0\0\0\0\xFF", 8)).integer == -(int64_t(1) << 40));
  CHECK(root("\x8A\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F").integer == INT64_MAX);
  CHECK(root(std::string("G\xC0\x04\0\0\0\0\0\0", 9)).real == -2.5);
}

TEST_CASE("pth: a pickle can run nothing") {
  CHECK(contains(error_of_value(py_global("os", "system") + py_tuple({py_text("true")}) + "R"),
                 "offset 2: GLOBAL: expected a global of tensors and dicts, found \"os.system\""));
  CHECK(contains(error_of_value(py_text("builtins") + py_text("eval") + "\x93"), "found \"builtins.eval\""));
  CHECK(contains(error_of_value("(ios\nsystem\n"), "INST: expected an opcode"));
  CHECK(contains(error_of_value(py_global("torch", "FloatStorage") + ")\x81"), "NEWOBJ: expected an opcode"));
  CHECK(contains(error_of_value("\x82\x01"), "EXT1: expected an opcode"));
  CHECK(contains(error_of_value("\xFF"), "no opcode: expected an opcode"));
  // A whitelisted name is no function to be called on anything else.
  CHECK(contains(error_of_value(py_dict({{"w", py_global("torch", "FloatStorage") + ")R"}})),
                 "expected a tensor, found something else"));
  CHECK(contains(error_of_value(py_text("f") + ")R"), "REDUCE: expected a global and a tuple, found str"));
  CHECK(contains(error_of_value(py_global("collections", "OrderedDict") + py_ints({1}) + "R"),
                 "expected no arguments, found 1"));
  CHECK(contains(error_of_value("](}b"), "BUILD: expected a value on the stack"));
  CHECK(contains(error_of_value("]}b"), "BUILD: expected a dict, found list"));
}

TEST_CASE("pth: recursion, huge places and lying lengths in a pickle are errors") {
  CHECK(error_of_value("}q" + std::string(1, '\0') + py_text("self") + "h" + std::string(1, '\0') + "s" +
                       py_text("w") + py_tensor() + "s")
            .empty());
  CHECK(contains(error_of_value("]q" + std::string(1, '\0') + "h" + std::string(1, '\0') + "a"),
                 "expected a state_dict (a dict), found list"));
  CHECK(contains(error_of_value(std::string(500000, '(')), "expected 1 values on the stack, found 0"));
  CHECK(contains(error_of_value(std::string(500000, ']')), "expected one value at the end"));
  CHECK(contains(error_of_value("}r\xFF\xFF\xFF\xFF"),
                 "LONG_BINPUT: expected a memo place below 1048576, found 4294967295"));
  CHECK(
      contains(error_of_value("}j\xFF\xFF\xFF\xFF"), "LONG_BINGET: expected a memo place that was written"));
  CHECK(contains(error_of_value(std::string("X\xFF\xFF\xFF\x7F") + "short"),
                 "BINUNICODE: expected 2147483647 more bytes, found 6"));
  CHECK(contains(error_of_value("X\1" + std::string(3, '\0') + "\xFF"), "expected UTF-8"));
  CHECK(contains(error_of_value("\x95" + little_endian(1 << 20, 8)), "FRAME: expected 1048576 more bytes"));
  CHECK(
      contains(error_of_value("\x8A\x09" + std::string(9, '\1')), "LONG1: expected an integer of at most 8"));
  CHECK(contains(error_of_value("ctorch"), "GLOBAL: expected a line"));
  CHECK(contains(error_of_value("}" + std::string("(") + py_text("k") + "u"), "a value for each key"));
  CHECK(contains(error_of_value("u"), "SETITEMS: expected a mark"));
  CHECK(contains(error_of_value("]]s"), "SETITEM: expected a value on the stack, found none"));
  CHECK(contains(error_of_pickle("\x80\x01}."), "expected protocol 2 to 5, found 1"));
  CHECK(contains(error_of_pickle("}."), "expected a pickle of protocol 2 or later"));
  CHECK(contains(error_of_pickle(""), "expected a pickle of protocol 2 or later"));
  CHECK(contains(error_of_pickle("\x80\x02}"), "the end: expected 1 more bytes, found 0"));
  CHECK(contains(error_of_pickle("\x80\x02}.}"), "expected the end of the pickle, found 1 more bytes"));
  std::string many = "\x80\x02";
  for (size_t i = 0; i <= Pickle::max_values; i++) many += 'N';
  CHECK(contains(error_of_pickle(many), "expected at most 1048576 values"));
}

TEST_CASE("pth: tensors that reach outside their storage or lie about it are errors") {
  const auto with = [](auto change) {
    PyTensor t;
    change(t);
    return error_of_tensor(t);
  };
  const int64_t big = int64_t(1) << 62;
  CHECK(error_of_tensor({}).empty());
  CHECK(contains(with([](auto& t) { t.offset = 1; }), "\"w\": expected elements inside a storage of 6"));
  CHECK(contains(with([](auto& t) { t.offset = INT64_MAX; }), "expected elements inside a storage"));
  CHECK(contains(with([](auto& t) { t.offset = -1; }), "offset: expected a whole number"));
  CHECK(contains(with([](auto& t) { t.shape = {3, 3}; }), "expected elements inside a storage"));
  CHECK(contains(with([](auto& t) { t.strides = {4, 1}; }), "expected elements inside a storage"));
  CHECK(contains(with([&](auto& t) { t.strides = {big, big}; }), "expected elements inside a storage"));
  CHECK(contains(with([&](auto& t) { t.strides = {INT64_MAX, INT64_MAX}; }), "expected elements inside"));
  CHECK(contains(with([](auto& t) { t.strides = {-1, 1}; }), "strides: expected at most 64 whole numbers"));
  CHECK(contains(with([](auto& t) { t.shape = {-2, 3}; }), "shape: expected at most 64 whole numbers"));
  CHECK(contains(with([](auto& t) { t.shape = {6}; }), "expected a stride for each axis"));
  CHECK(contains(with([&](auto& t) { t.shape = {big, big}; }), "fits in 2^63 bytes"));
  CHECK(contains(with([](auto& t) { t.shape = Ints(65, 1); }), "at most 64"));
  // Strides of 0 make much out of little: the cap on bytes counts what comes out.
  CHECK(contains(with([](auto& t) {
                   t.shape = {1000, 1000}, t.strides = {0, 0};
                 }),
                 "expected tensors of at most 1048576 more bytes, found [1000, 1000] of f32"));
  CHECK(with([](auto& t) { t.shape = {1, 6}, t.strides = {INT64_MAX, 1}; }).empty());
  CHECK(with([&](auto& t) { t.shape = {0, 6}, t.strides = {big, big}; }).empty());
  CHECK(contains(with([](auto& t) { t.elements = 7; }), "expected 7 elements of 4 bytes, found 24 bytes"));
  CHECK(contains(with([](auto& t) { t.elements = INT64_MAX; }), "elements of 4 bytes, found 24 bytes"));
  CHECK(contains(with([](auto& t) { t.type = "DoubleStorage"; }), "expected 6 elements of 8 bytes"));
  CHECK(
      contains(with([](auto& t) { t.type = "ComplexFloatStorage"; }), "found \"torch.ComplexFloatStorage\""));
  CHECK(contains(with([](auto& t) { t.key = "2"; }), "in the member \"a/data/2\", found none"));
  CHECK(contains(with([](auto& t) { t.key = "../data.pkl"; }), "\"a/data/../data.pkl\", found none"));
  CHECK(contains(error_of_pickle(py_file(py_dict({{"w", py_tensor()}})), 23), "expected at most 23 bytes"));
}

TEST_CASE("pth: a file that is cut or damaged anywhere is an error") {
  const std::string good = read_file(folder + "layouts.pth");
  CHECK(error_of_bytes(good).empty());
  for (size_t n = 0; n < good.size(); n += 37) CHECK_FALSE(error_of_bytes(good.substr(0, n)).empty());
  // Inside the pickle and inside a storage the checksum tells.
  for (const size_t at : {good.find("_rebuild"), good.find("data/0") + 70}) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ 1);
    CHECK(contains(error_of_bytes(bad), "checksum: expected"));
  }
  // Any other changed byte: read or refused, never worse.
  for (size_t at = 0; at < good.size(); at += 7) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ 0x55);
    error_of_bytes(bad);
  }
}
