// SPDX-License-Identifier: MIT OR Apache-2.0
// Compares products for Hopper with reference convolutions and linear layers, for sizes that do
// and do not fill a block's pixels and steps.
#include "hopper.h"

#include "product.h"

#include "../../src/ops/cuda/product_hopper.cu"

template <class T> using Kernel = void (*)(Tiles, TensorMap, TensorMap, TensorMap, TensorMap, TensorMap);

/// Runs a kernel with pixel tiles of width `tile_width`. For 3×3 convolutions, the tiles lie in frames
/// of height × width; all other products treat the pixels of a frame as one row.
template <class T, int OUTPUTS> void compare(const char *name, Kernel<T> kernel, const Case &of, int tile_width) {
    const Operands<T> operands(of);
    const Buffer<T> out(of.pixels() * of.outputs);
    // Only 3×3 kernels depend on a pixel's coordinates.
    const int height = of.taps == 9 ? of.height : 1;
    const int width = of.taps == 9 ? of.width : of.height * of.width;
    const int tile_height = PIXELS / tile_width;
    const auto steps = [](int channels) { return (channels + STEP - 1) / STEP; };
    Tiles tiles = {};
    tiles.bias = of.bias > 0 ? operands.bias.data() : nullptr;
    tiles.add = of.add ? operands.add.data() : nullptr;
    tiles.out = out.data();
    tiles.frames = of.frames;
    tiles.height = height;
    tiles.width = width;
    tiles.outputs = of.outputs;
    tiles.tile_width = tile_width;
    tiles.tile_height = tile_height;
    tiles.across = (width + tile_width - 1) / tile_width;
    tiles.down = (height + tile_height - 1) / tile_height;
    tiles.taps = of.taps;
    tiles.steps[0] = steps(of.channels[0]);
    tiles.steps[1] = steps(of.channels[1]);
    tiles.second = of.channels[0];
    tiles.bias_frames = max(of.bias, 1);
    tiles.has_before = of.before;
    tiles.has_after = of.after;
    tiles.scale = of.scale;
    const auto map = [&](const Buffer<T> &from, int channels, int frames) -> TensorMap {
        return {from.data(), channels, width, height, frames, tile_width, tile_height};
    };
    const TensorMap first = map(operands.parts[0], of.channels[0], of.frames);
    const TensorMap second = map(operands.parts[1], of.channels[1], of.frames);
    const TensorMap before = map(operands.before, of.channels[0], 1);
    const TensorMap after = map(operands.after, of.channels[0], 1);
    const TensorMap weights = {operands.weight.data(), of.total(), of.taps, of.outputs, 1, 1, WEIGHTS<OUTPUTS>};
    const u32 blocks = of.outputs / OUTPUTS * tiles.across * tiles.down * of.frames;
    emulator::launch({blocks}, {384}, sizeof(Shared<OUTPUTS>) + ALIGNMENT,
                     [&] { kernel(tiles, first, second, before, after, weights); });
    report(name, operands, of, out);
}

const Case FULL = Case::image("3x3 of 64 channels, 256 outputs, blocks that are full", 1, 8, 16, 64, 0, 256);
const Case IMAGE =
    Case::image("3x3 of 72 + 40 channels, 256 outputs, a bias of each frame", 2, 9, 11, 72, 40, 256)
        .with([](Case &all) {
            all.bias = 2;
            all.add = true;
        });
const Case TIME = Case::time("frames of 64 channels, 640 outputs, between others", 3, 9, 15, 64, 640)
                      .with([](Case &all) {
                          all.before = all.after = all.add = true;
                          all.scale = 0.3;
                      });
const Case END = Case::time("frames of 72 channels, 640 outputs, at the end", 2, 1, 130, 72, 640)
                     .with([](Case &all) {
                         all.before = true;
                         all.bias = 0;
                     });
// More steps than stages: two rounds.
const Case ROWS = Case::linear("rows of 320 + 128 channels, 640 outputs", 150, 320, 128, 640)
                      .with([](Case &all) { all.add = true; });

int main() {
    compare<f16, 128>("product_hopper_128", product_hopper_128_f16, FULL, 16);
    compare<f16, 256>("product_hopper_256", product_hopper_256_f16, FULL, 16);
    compare<f16, 128>("product_hopper_128", product_hopper_128_f16, IMAGE, 8);
    compare<f16, 256>("product_hopper_256", product_hopper_256_f16, IMAGE, 4);
    compare<bf16, 128>("product_hopper_128", product_hopper_128_bf16, IMAGE, 1);
    compare<bf16, 256>("product_hopper_256", product_hopper_256_bf16, IMAGE, 128);
    for (const Case &of : {TIME, END, ROWS}) {
        compare<f16, 320>("product_hopper_320", product_hopper_320_f16, of, 128);
        compare<bf16, 320>("product_hopper_320", product_hopper_320_bf16, of, 128);
        compare<f16, 128>("product_hopper_128", product_hopper_128_f16, of, 128);
    }
    return emulator::failed;
}
