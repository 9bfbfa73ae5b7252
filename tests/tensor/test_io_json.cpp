#include <cmath>
#include <cstdlib>
#include <limits>

#include "tensor/io/json_writer.h"
#include "tests/tensor/io_testing.h"

using namespace eigentrace;

TEST_CASE("io json: compact and pretty documents") {
  const auto write = [](JsonWriter::Style style) {
    JsonWriter json(style);
    json.begin_object()
        .field("name", "a \"b\"\\\n\t\x01é")
        .field("n", 3)
        .field("big", ~uint64_t(0))
        .field("yes", true);
    json.key("list").values(std::vector<double>{1, 0.1, -2.5e-300}).key("empty").begin_array().end_array();
    json.key("inner").begin_object().key("none").null().key("o").begin_object().end_object().end_object();
    return json.end_object().text();
  };
  CHECK(write(JsonWriter::Style::compact) ==
        "{\"name\":\"a \\\"b\\\"\\\\\\n\\t\\u0001é\",\"n\":3,\"big\":18446744073709551615,\"yes\":true,"
        "\"list\":[1,0.1,-2.5e-300],\"empty\":[],\"inner\":{\"none\":null,\"o\":{}}}");
  CHECK(write(JsonWriter::Style::pretty) ==
        "{\n  \"name\": \"a \\\"b\\\"\\\\\\n\\t\\u0001é\",\n  \"n\": 3,\n  \"big\": 18446744073709551615,\n  "
        "\"yes\": true,\n"
        "  \"list\": [1,0.1,-2.5e-300],\n  \"empty\": [],\n  \"inner\": {\n    \"none\": null,\n    \"o\": "
        "{}\n  }\n}");
}

TEST_CASE("io json: doubles and floats read back to the same bits, what is not finite is null") {
  for (const double x : {0.0, -0.0, 1.0 / 3, 1e300, 5e-324, 123456789.123456789, std::nextafter(1.0, 2.0)}) {
    const double back = std::strtod(JsonWriter().value(x).text().c_str(), nullptr);
    CHECK(std::signbit(back) == std::signbit(x));
    CHECK(back == x);
  }
  CHECK(JsonWriter().value(0.1f).text() == "0.1");
  CHECK(JsonWriter().value(std::nan("")).text() == "null");
  CHECK(JsonWriter().value(-std::numeric_limits<float>::infinity()).text() == "null");
}

TEST_CASE("io json: bytes that are not UTF-8 become the replacement character") {
  const std::string r = "\xEF\xBF\xBD";
  CHECK(json_quoted("a\xFFz") == "\"a" + r + "z\"");
  CHECK(json_quoted("\xC0\x80") == "\"" + r + r + "\"");          // overlong
  CHECK(json_quoted("\xED\xA0\x80") == "\"" + r + r + r + "\"");  // surrogate
  CHECK(json_quoted("\xE2\x82") == "\"" + r + r + "\"");          // cut
  CHECK(json_quoted("€𝄞") == "\"€𝄞\"");
  CHECK(is_utf8("λ = 1, 𝄞"));
  CHECK_FALSE(is_utf8("\xF4\x90\x80\x80"));
}

TEST_CASE("io json: what would not be JSON is an error") {
  CHECK(contains(error_of([] { JsonWriter().begin_object().value(1); }), "expected a key first"));
  CHECK(contains(error_of([] { JsonWriter().begin_array().key("k"); }), "inside an object"));
  CHECK(contains(error_of([] { JsonWriter().begin_object().key("k").key("l"); }), "after another key"));
  CHECK(
      contains(error_of([] { JsonWriter().begin_object().key("k").end_object(); }), "a value after the key"));
  CHECK(contains(error_of([] { JsonWriter().begin_object().end_array(); }), "expected }, found ]"));
  CHECK(contains(error_of([] { JsonWriter().value(1).value(2); }), "after the end"));
  CHECK(contains(error_of([] { JsonWriter().begin_array().text(); }), "complete document"));
  CHECK(contains(error_of([] { JsonWriter().text(); }), "complete document"));
}
