// The tree of kd_tree.h, built level by level: bound the nodes, then sort all points by their node
// and, within it, along its widest axis. A sort of a whole level keeps every thread busy whatever
// the distribution, and as it is stable, the tree is the same in every run. Then one thread per
// point searches; neighbouring threads have neighbouring points and walk much the same nodes.
#include <cub/cub.cuh>

#include <cstdint>
#include <limits>
#include <utility>

#include "kd_tree.h"
#include "knn.h"
#include "knn_cuda.h"
#include "native/cuda.cuh"

namespace simple_knn::gpu {
namespace {

constexpr unsigned kBlock = 256;
constexpr unsigned kSearchBlock = 128;
constexpr int kPointsPerLane = 8;  // when bounding nodes
constexpr std::int64_t kPointsPerWarp = kPointsPerLane * std::int64_t{native::kWarp};

constexpr int kLargest = 0x7f7f7f7f;  // ordered(3.4e38), beyond every coordinate; set by bytes
constexpr int kByteOfLargest = 0x7f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Floats as integers of the same order, for atomics and sorting; its own inverse on the bits.
__device__ __forceinline__ int reordered(int bits) {
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}
__device__ __forceinline__ int ordered(float value) { return reordered(__float_as_int(value)); }
__device__ __forceinline__ float from_ordered(int key) { return __int_as_float(reordered(key)); }

// A bounding box under construction: ordered() of the low corner, then of the negated high corner.
struct Bounds {
  int at[6];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int v = 0; v < 6; ++v) at[v] = kLargest;
  }

  __device__ __forceinline__ void include(const Item& item) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      at[axis] = min(at[axis], ordered(item.position[axis]));
      at[3 + axis] = min(at[3 + axis], ordered(-item.position[axis]));
    }
  }

  __device__ __forceinline__ Box box() const {
    Box result;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      result.low[axis] = from_ordered(at[axis]);
      result.high[axis] = -from_ordered(at[3 + axis]);
    }
    return result;
  }
};

// The boxes of a node's two children, read in 16-byte pieces.
struct alignas(16) Children {
  Box box[2];
};

__global__ void __launch_bounds__(kBlock)
invalid_kernel(const float* points, std::int64_t count, int* first) {
  const std::int64_t i = native::global_index();
  if (i >= count) return;
  bool valid = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    valid = valid && fabsf(points[3 * i + axis]) <= kMaxCoordinate;  // false for NaN
  }
  if (!valid) atomicMin(first, static_cast<int>(i));
}

__global__ void __launch_bounds__(kBlock)
load_kernel(const float* points, std::int64_t count, Item* items, std::uint32_t* order) {
  const std::int64_t i = native::global_index();
  if (i >= count) return;
  items[i] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]}, static_cast<int>(i)};
  order[i] = static_cast<std::uint32_t>(i);
}

// Adds the bounds of the warp's lanes to those of their nodes; -1 is none. The points of a node are
// neighbours: each lane takes over what comes after it, and the first lane of a node has it all.
__device__ __forceinline__ void add_bounds(Bounds mine, int node, Bounds* bounds) {
#pragma unroll
  for (unsigned d = 1; d < native::kWarp; d *= 2) {
    const bool same = __shfl_down_sync(native::kFullMask, node, d) == node;
#pragma unroll
    for (int v = 0; v < 6; ++v) {
      const int other = __shfl_down_sync(native::kFullMask, mine.at[v], d);
      if (same) mine.at[v] = min(mine.at[v], other);
    }
  }
  const int before = __shfl_up_sync(native::kFullMask, node, 1);
  const bool is_first = threadIdx.x % native::kWarp == 0 || before != node;
  if (!is_first || node < 0) return;
#pragma unroll
  for (int v = 0; v < 6; ++v) atomicMin(&bounds[node].at[v], mine.at[v]);
}

// to[i] = from[order[i]], and the bounds of the level's nodes, which must be clear.
__global__ void __launch_bounds__(kBlock)
place_kernel(Shape shape, int level, const Item* from, const std::uint32_t* order, Item* to,
             Bounds* bounds) {
  const std::int64_t first = native::global_index() / native::kWarp * kPointsPerWarp;
  if (first >= shape.count) return;  // whole warps
  const std::int64_t end = first + kPointsPerWarp < shape.count ? first + kPointsPerWarp
                                                                : shape.count;
  const int first_node = static_cast<int>(shape.node_of(first, level));
  const bool one_node = first_node == shape.node_of(end - 1, level);
  Bounds mine;
  mine.clear();
  for (int j = 0; j < kPointsPerLane; ++j) {
    const std::int64_t i = first + j * native::kWarp + threadIdx.x % native::kWarp;
    if (i < end) {
      const Item item = from[order[i]];
      to[i] = item;
      mine.include(item);
    }
    if (!one_node) {
      add_bounds(mine, i < end ? static_cast<int>(shape.node_of(i, level)) : -1, bounds);
      mine.clear();
    }
  }
  if (one_node) add_bounds(mine, first_node, bounds);
}

// Sorting by these keys sorts by node, then along the node's widest axis.
__global__ void __launch_bounds__(kBlock)
key_kernel(Shape shape, int level, const Item* items, const Bounds* bounds, std::uint64_t* keys,
           std::uint32_t* positions) {
  const std::int64_t i = native::global_index();
  if (i >= shape.count) return;
  const std::int64_t node = shape.node_of(i, level);
  const int axis = widest_axis(bounds[node].box());
  const Item item = items[i];
  const float along = axis == 0 ? item.position[0] : axis == 1 ? item.position[1]
                                                               : item.position[2];
  const std::uint64_t rank = static_cast<std::uint64_t>(node + 1 - (std::int64_t{1} << level));
  const std::uint32_t key = static_cast<std::uint32_t>(ordered(along)) ^ 0x80000000u;
  keys[i] = rank << 32 | key;
  positions[i] = static_cast<std::uint32_t>(i);
}

__global__ void __launch_bounds__(kBlock)
children_kernel(Shape shape, const Bounds* bounds, Children* children) {
  const std::int64_t node = native::global_index();
  if (node >= shape.first_leaf()) return;
  children[node] = {{bounds[2 * node + 1].box(), bounds[2 * node + 2].box()}};
}

// The K best candidates so far, ascending, in registers.
template <int K>
struct Registers {
  float dist2[K];
  int index[K];

  __device__ __forceinline__ Registers(float*, std::int64_t*, std::int64_t) {
#pragma unroll
    for (int slot = 0; slot < K; ++slot) {
      dist2[slot] = kInfinity;
      index[slot] = -1;
    }
  }

  __device__ __forceinline__ float worst() const { return dist2[K - 1]; }

  __device__ __forceinline__ void insert(float candidate, int candidate_index) {
#pragma unroll
    for (int slot = 0; slot < K; ++slot) {
      if (!(candidate < dist2[slot])) continue;
      const float moved = dist2[slot];
      const int moved_index = index[slot];
      dist2[slot] = candidate;
      index[slot] = candidate_index;
      candidate = moved;
      candidate_index = moved_index;
    }
  }

  // The first k of them.
  __device__ __forceinline__ void store(float* dist2_row, std::int64_t* index_row,
                                        std::int64_t k) const {
#pragma unroll
    for (int slot = 0; slot < K; ++slot) {
      if (slot >= k) continue;
      dist2_row[slot] = dist2[slot];
      index_row[slot] = index[slot];
    }
  }
};

// Any number of them, kept where they are wanted in the end.
struct Rows : Neighbours {
  __device__ __forceinline__ Rows(float* dist2_row, std::int64_t* index_row, std::int64_t k)
      : Neighbours{dist2_row, index_row, k} {
    clear(kInfinity);
  }
  __device__ __forceinline__ void store(float*, std::int64_t*, std::int64_t) const {}
};

// The search of one point, as kd_tree.h asks for it.
template <typename Best>
struct Query {
  const Shape& shape;
  const Item* items;
  const Children* children;
  std::int64_t self;
  Item q;
  Best& best;
  int scanned;

  SIMPLE_KNN_HD float worst() const { return best.worst(); }

  SIMPLE_KNN_HD float dist2(int node) const {
    const Box box = children[(node - 1) / 2].box[(node - 1) % 2];
    return squared_distance(box, q.position);
  }

  SIMPLE_KNN_HD ChildDistances dist2_of_children(int node) const {
    const Children both = children[node];
    return {squared_distance(both.box[0], q.position), squared_distance(both.box[1], q.position)};
  }

  SIMPLE_KNN_HD void scan(int leaf) {
    ++scanned;
    const std::int64_t end = shape.begin(leaf + 1, shape.depth);
    for (std::int64_t i = shape.begin(leaf, shape.depth); i < end; ++i) {
      const Item item = items[i];
      const float dist2 =
          squared_norm(item.position[0] - q.position[0], item.position[1] - q.position[1],
                       item.position[2] - q.position[2]);
      if (dist2 < best.worst() && i != self) best.insert(dist2, item.index);
    }
  }
};

template <typename Best>
__global__ void __launch_bounds__(kSearchBlock)
search_kernel(Shape shape, const Item* items, const Children* children, std::int64_t k,
              float* dist2, std::int64_t* index, std::int32_t* scanned) {
  const std::int64_t i = native::global_index();
  if (i >= shape.count) return;
  const Item item = items[i];
  const std::int64_t row = item.index * k;
  Best best(dist2 + row, index + row, k);
  Query<Best> query{shape, items, children, i, item, best, 0};
  search(query, static_cast<int>(shape.node_of(i, shape.depth)),
         static_cast<int>(shape.first_leaf()));
  best.store(dist2 + row, index + row, k);
  if (scanned != nullptr) scanned[item.index] = query.scanned;
}

// Sorts keys with their values by bits [0, end_bit), or says in `bytes` what it needs for that.
void sort(void* temporary, std::size_t& bytes, const std::uint64_t* keys,
          std::uint64_t* sorted_keys, const std::uint32_t* values, std::uint32_t* sorted_values,
          std::int64_t count, int end_bit, cudaStream_t stream) {
  native::check(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted_keys, values,
                                                sorted_values, static_cast<int>(count), 0, end_bit,
                                                stream),
                "sorting points");
}

// The arrays of Scratch, in its order.
struct Workspace {
  Item *items, *other_items;
  std::uint64_t *keys, *sorted_keys;
  std::uint32_t *positions, *order;
  Bounds* bounds;
  Children* children;
  void* temporary;
  std::size_t temporary_bytes;
};

Workspace workspace_in(const Scratch& s) {
  return {static_cast<Item*>(s.at[0]),          static_cast<Item*>(s.at[1]),
          static_cast<std::uint64_t*>(s.at[2]), static_cast<std::uint64_t*>(s.at[3]),
          static_cast<std::uint32_t*>(s.at[4]), static_cast<std::uint32_t*>(s.at[5]),
          static_cast<Bounds*>(s.at[6]),        static_cast<Children*>(s.at[7]),
          s.at[8],                              s.bytes[8]};
}

// Leaves the points in the order of the leaves in w.items, and the boxes in w.children.
void build_tree(const float* points, const Shape& shape, Workspace& w, cudaStream_t stream) {
  const dim3 block(kBlock), blocks(native::blocks_for(shape.count, kBlock));
  const std::int64_t warps = (shape.count + kPointsPerWarp - 1) / kPointsPerWarp;
  const dim3 place_blocks(native::blocks_for(warps * native::kWarp, kBlock));
  native::check(cudaMemsetAsync(w.bounds, kByteOfLargest, shape.nodes() * sizeof(Bounds), stream),
                "clearing bounds");
  native::launch(load_kernel, blocks, block, stream, points, shape.count, w.other_items, w.order);
  for (int level = 0;; ++level) {
    native::launch(place_kernel, place_blocks, block, stream, shape, level, w.other_items, w.order,
                   w.items, w.bounds);
    if (level == shape.depth) break;
    native::launch(key_kernel, blocks, block, stream, shape, level, w.items, w.bounds, w.keys,
                   w.positions);
    sort(w.temporary, w.temporary_bytes, w.keys, w.sorted_keys, w.positions, w.order, shape.count,
         32 + level, stream);
    std::swap(w.items, w.other_items);
  }
  native::launch(children_kernel, dim3(native::blocks_for(shape.first_leaf(), kBlock)), block,
                 stream, shape, w.bounds, w.children);
}

// Bytes that sorting needs, at any level.
std::size_t temporary_bytes(const Shape& shape) {
  std::size_t most = 1;
  for (int level = 0; level < shape.depth; ++level) {
    std::size_t bytes = 0;
    sort(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, shape.count, 32 + level, nullptr);
    most = bytes > most ? bytes : most;
  }
  return most;
}

}  // namespace

void first_invalid(const float* points, std::int64_t count, std::int32_t* first,
                   cudaStream_t stream) {
  native::launch(invalid_kernel, dim3(native::blocks_for(count, kBlock)), dim3(kBlock), stream,
                 points, count, first);
}

std::array<std::size_t, kScratchArrays> scratch_bytes(std::int64_t count) {
  const Shape shape = shape_of(count);
  const std::size_t n = static_cast<std::size_t>(count);
  return {n * sizeof(Item),
          n * sizeof(Item),
          n * sizeof(std::uint64_t),
          n * sizeof(std::uint64_t),
          n * sizeof(std::uint32_t),
          n * sizeof(std::uint32_t),
          static_cast<std::size_t>(shape.nodes()) * sizeof(Bounds),
          static_cast<std::size_t>(shape.first_leaf()) * sizeof(Children),
          temporary_bytes(shape)};
}

void nearest_neighbours(const float* points, std::int64_t count, std::int64_t k,
                        const Scratch& scratch, float* dist2, std::int64_t* index,
                        std::int32_t* scanned, cudaStream_t stream) {
  if (count == 0) return;
  const Shape shape = shape_of(count);
  Workspace w = workspace_in(scratch);
  build_tree(points, shape, w, stream);
  const auto kernel = k == 1   ? search_kernel<Registers<1>>
                      : k <= 3 ? search_kernel<Registers<3>>
                      : k <= 8 ? search_kernel<Registers<8>>
                               : search_kernel<Rows>;
  native::launch(kernel, dim3(native::blocks_for(count, kSearchBlock)), dim3(kSearchBlock), stream,
                 shape, w.items, w.children, k, dist2, index, scanned);
}

}  // namespace simple_knn::gpu
