/* Run the kernels of every variant that this processor has against the definitions in float64.
 *
 * For processors that the Python tests do not run on: built for them and run under an emulator.
 * Prints the variants; the exit status is the number of checks that failed.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/choice.h"
#include "check.h"
#include "cpu/panels.h"
#include "formats/formats.h"

#define MAX_ROWS    300u
#define MAX_K       2560u
#define MAX_VECTORS 13u

static const oxb_host host = {.file_format = oxb_file_format_of,
                              .device_format = oxb_device_format_of,
                              .reformat_blocks = formats_reformat_blocks};

static uint64_t state = 1;

static uint32_t random_bits(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

float random_float(void) { return (float)random_bits() / 4294967296.0f - 0.25f; /* with a mean */ }

static int failures;

void expect(int holds, const char *variant, const char *what, double value, double limit) {
    if (holds) return;
    failures++;
    printf("%s: %s: %g, limit %g\n", variant, what, value, limit);
}

/* Every code, and another scale of either sign in each block. */
static void random_blocks(const oxb_file_format_info *info, uint8_t *blocks, uint64_t n,
                          int without_three) {
    for (uint64_t i = 0; i < n * info->block_bytes; i++) {
        const uint8_t byte = (uint8_t)random_bits();
        blocks[i] = without_three ? byte & (uint8_t)~((byte & 0x55) << 1) : byte;
    }
    for (uint64_t i = 0; i < n; i++) {
        const uint16_t half = (uint16_t)(0x2c00 + random_bits() % 1024 + (random_bits() & 0x8000));
        memcpy(blocks + i * info->block_bytes + info->scale_offset, &half, sizeof half);
    }
}

/* How far rounding to int8 may move a product: half a step of each activation. */
static double int8_error(const float *weights, const float *x, uint64_t k) {
    double error = 0;
    for (uint64_t block = 0; block < k; block += CPU_INT8_BLOCK) {
        double largest = 0, sizes = 0;
        for (uint64_t i = block; i < block + CPU_INT8_BLOCK; i++) {
            largest = fmax(largest, fabs((double)x[i]));
            sizes += fabs((double)weights[i]);
        }
        error += largest / 254 * sizes;
    }
    return error;
}

/* Rows from `first` on of a packed matrix times the vectors of m. */
static void check_rows(const cpu_call *call, const cpu_matrix *m, uint64_t first, uint64_t n) {
    static float tables[CPU_TABLES / sizeof(float)], weights[MAX_K];
    static double out[CPU_SCRATCH / sizeof(double)];
    const cpu_panels p =
        cpu_panels_at(m->weight, m->codes_offset, m->format, call->kernel->layout, m->k);
    const cpu_sums sums =
        m->quantized != NULL ? cpu_int8_rows(call, m, &first, 1, n, out, (uint32_t *)(void *)tables)
                             : cpu_panel_rows(call, m, &first, 1, n, 0, out, tables);
    double error[MAX_VECTORS] = {0}, norm[MAX_VECTORS] = {0}, size[MAX_VECTORS] = {0};
    for (uint64_t row = 0; row < n; row++) {
        for (uint64_t g = 0; g < p.n_groups; g++)
            cpu_panel_weights(&p, first + row, g, weights + g * p.group_size);
        for (uint32_t v = 0; v < m->n_vectors; v++) {
            const float *x = m->x + v * m->k;
            double expected = 0, sizes = 0;
            for (uint64_t i = 0; i < m->k; i++) {
                expected += (double)weights[i] * x[i];
                sizes += fabs((double)weights[i] * x[i]);
            }
            const double off = fabs(sums.part[0][v * sums.stride + row] - expected);
            if (m->quantized != NULL) {
                const double limit = int8_error(weights, x, m->k) + 1e-6 * sizes;
                expect(off <= limit, call->isa->name, "error in int8", off, limit);
            }
            error[v] += off * off;
            norm[v] += expected * expected;
            size[v] += sizes * sizes / (double)m->k;
        }
    }
    for (uint32_t v = 0; v < m->n_vectors && m->quantized == NULL; v++) {
        const double of = norm[v] > size[v] ? norm[v] : size[v];
        expect(error[v] <= 1e-12 * of, call->isa->name, "relative error of a product",
               sqrt(error[v] / of), 1e-6);
    }
}

static void check_product(const cpu_isa *isa, oxb_file_format format, uint32_t layout,
                          uint64_t n_rows, uint64_t k, int without_three) {
    static uint8_t blocks[MAX_ROWS * MAX_K];
    static float x[MAX_VECTORS * MAX_K];
    static uint32_t quantized[MAX_VECTORS * MAX_K]; /* more than enough */
    const oxb_file_format_info *info = oxb_file_format_of(format);
    const uint32_t group = cpu_group(info->device_format);
    const cpu_packing packing = cpu_panel_packing(info->device_format, layout);
    if (isa->f32->packing[packing].rows == NULL) return;
    random_blocks(info, blocks, n_rows * k / info->block_weights, without_three);
    for (uint64_t i = 0; i < MAX_VECTORS * k; i++)
        x[i] = random_float() * (i / 100 % 3 == 1 ? 4.0f : 1.0f);
    uint64_t codes_offset;
    void *packed = malloc(cpu_panel_bytes(packing, group, n_rows, k, &codes_offset));
    const int fits = cpu_pack(isa, &host, format, layout, blocks, n_rows, k, packed, 1);
    expect(fits == (layout != CPU_LAYOUT_TRITS || without_three), isa->name,
           "codes that fit the layout", fits, 1);
    const cpu_kernel kernel = {.format = info->device_format, .layout = layout};
    const cpu_call call = {.kernel = &kernel, .isa = isa};
    const uint64_t bytes = cpu_int8_bytes(k, group);
    for (uint64_t v = 0; v < MAX_VECTORS; v++)
        isa->int8->quantize(x + v * k, k, group, (char *)quantized + v * bytes);
    /* Parts that start and end inside a strip. */
    for (uint64_t first = 0; fits && first < n_rows; first += 133) {
        cpu_matrix m = {.weight = packed,
                        .codes_offset = codes_offset,
                        .k = k,
                        .x = x,
                        .format = info->device_format};
        for (m.n_vectors = 1; m.n_vectors <= CPU_MOST_TOGETHER; m.n_vectors *= 2)
            check_rows(&call, &m, first, n_rows - first);
        m.quantized = (const char *)quantized;
        const uint64_t n = n_rows - first < CPU_INT8_ROWS ? n_rows - first : CPU_INT8_ROWS;
        static const uint32_t some[] = {1, 2, 6, 7, 11, MAX_VECTORS}; /* in parts of 1 to 6 */
        for (unsigned i = 0; i < sizeof some / sizeof some[0]; i++) {
            m.n_vectors = some[i];
            check_rows(&call, &m, first, n);
        }
    }
    free(packed);
}

static void check_dense(const cpu_isa *isa, oxb_device_format format, uint64_t k) {
    static uint8_t rows[5 * MAX_K * 4];
    static float x[MAX_K], weights[MAX_K];
    const uint64_t stride = k / cpu_group(format) * cpu_group_bytes(format);
    double sums[5];
    for (uint64_t i = 0; i < 5 * stride; i++) rows[i] = (uint8_t)random_bits();
    /* Exponents near 0: of each 4 or 2 bytes, or of each block's scale. */
    const uint64_t step = format == OXB_DEVICE_FORMAT_F32    ? 4
                          : format == OXB_DEVICE_FORMAT_Q8_0 ? 34
                                                             : 2;
    for (uint64_t i = 0; i < 5 * stride; i += step) {
        uint8_t *high = rows + i + (step == 34 ? 1 : step - 1);
        *high = (uint8_t)((*high & 0x81) |
                          (format == OXB_DEVICE_FORMAT_F16 || step == 34 ? 0x34 : 0x3e));
    }
    for (uint64_t i = 0; i < k; i++) x[i] = random_float();
    isa->f32->dense(format, rows, stride, 5, x, k, sums);
    for (unsigned row = 0; row < 5; row++) {
        double expected = 0, size = 0;
        cpu_dense_weights(format, rows + row * stride, 0, k, weights);
        for (uint64_t i = 0; i < k; i++) {
            expected += (double)weights[i] * x[i];
            size += fabs((double)weights[i] * x[i]);
        }
        const double error = fabs(sums[row] - expected);
        expect(error <= 1e-6 * size, isa->name, "error of a dense product", error, 1e-6 * size);
    }
}

static void check_attention(const cpu_isa *isa, uint32_t n, uint32_t heads, uint64_t positions,
                            int half) {
    static float q[4 * 512], cache[2][200 * 512], out[4][512];
    static uint16_t halves[2][200 * 512];
    static double scratch[CPU_ATTEND_SCRATCH / sizeof(double)];
    for (uint32_t i = 0; i < heads * n; i++) q[i] = 4 * random_float();
    for (unsigned c = 0; c < 2; c++)
        for (uint64_t i = 0; i < positions * n; i++) {
            halves[c][i] = (uint16_t)(0x3000 + random_bits() % 0xc00 + (random_bits() & 0x8000));
            cache[c][i] =
                half ? ldexpf(1024 + (float)(halves[c][i] & 1023), (halves[c][i] >> 10 & 31) - 25) *
                           (halves[c][i] & 0x8000 ? -1.0f : 1.0f)
                     : random_float();
        }
    cpu_attend_head head[4];
    for (uint32_t h = 0; h < heads; h++) head[h].out = out[h];
    const cpu_attend job = {.q = q,
                            .k = half ? (void *)halves[0] : cache[0],
                            .v = half ? (void *)halves[1] : cache[1],
                            .page_size = positions,
                            .end = positions,
                            .head_dim = n,
                            .n_heads = heads,
                            .kv_format = half ? OXB_KV_F16 : OXB_KV_F32,
                            .scale = 0.25f,
                            .head = head,
                            .scratch = scratch};
    isa->f32->attend(&job);
    for (uint32_t h = 0; h < heads; h++) {
        double score[200], expected[512] = {0}, total = 0, largest = -INFINITY, error = 0, norm = 0;
        for (uint64_t p = 0; p < positions; p++) {
            score[p] = 0;
            for (uint32_t i = 0; i < n; i++)
                score[p] += (double)q[h * n + i] * cache[0][p * n + i] * 0.25;
            largest = score[p] > largest ? score[p] : largest;
        }
        for (uint64_t p = 0; p < positions; p++) {
            const double weight = exp(score[p] - largest);
            total += weight;
            for (uint32_t i = 0; i < n; i++) expected[i] += weight * cache[1][p * n + i];
        }
        for (uint32_t i = 0; i < n; i++) {
            const double difference = (double)out[h][i] / head[h].total - expected[i] / total;
            error += difference * difference;
            norm += expected[i] / total * (expected[i] / total);
        }
        expect(error <= 1e-10 * norm, isa->name, "relative error of attention", sqrt(error / norm),
               1e-5);
    }
}

static void check_swiglu(const cpu_isa *isa) {
    double gate[48], up[48];
    float s[33];
    for (unsigned i = 0; i < 48; i++) {
        gate[i] = (double)i * 9 - 200;
        up[i] = 1 + i;
    }
    s[32] = -1;
    isa->f32->swiglu(gate, up, s, 31);
    for (unsigned i = 0; i < 31; i++) {
        const double expected = gate[i] / (1 + exp(-gate[i])) * up[i];
        const double error = fabs((double)s[i] - expected);
        expect(error <= 1e-6 * fabs(expected) + 1e-36, isa->name, "error of SwiGLU", error,
               1e-6 * fabs(expected));
    }
    expect(s[32] == -1, isa->name, "SwiGLU wrote past its end", s[32], -1);
}

#define MAX_LOGITS 2100u

/* Some equal, some absent, some not numbers. */
static void random_logits(float *x, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        x[i] = 20 * random_float();
        if (random_bits() % 4 == 0) x[i] = (float)(random_bits() % 3);
        if (random_bits() % 16 == 0) x[i] = random_bits() % 2 ? -INFINITY : NAN;
    }
}

static void check_passes(const cpu_isa *isa, const float *x, uint64_t n) {
    static float copy[MAX_LOGITS + 1], packed[MAX_LOGITS + CPU_LANES];
    static float maxima[(MAX_LOGITS / 1024 + 1) * CPU_LANES];
    static uint32_t mask[MAX_LOGITS / 32 + 1], within[MAX_LOGITS];
    const cpu_choice *c = &isa->f32->choice;
    const float low = -2, high = 2;
    float largest = -INFINITY, kept = -INFINITY, of_groups = -INFINITY;
    float smallest = INFINITY;
    uint64_t count = 0, above = 0, equal = 0, found = n, n_within = 0, wrong = 0;
    for (uint64_t i = 0; i <= n / 32; i++) mask[i] = random_bits();
    copy[n] = -1;
    const float kept_by_copy = c->copy(x, mask, copy, n);
    const uint64_t n_packed = c->pack(x, n, low, high, packed, MAX_LOGITS);
    for (uint64_t i = 0; i < n; i++) {
        const float w = x[i] == x[i] ? x[i] : -INFINITY;
        const int in = mask[i / 32] >> i % 32 & 1;
        largest = w > largest ? w : largest;
        smallest = w < smallest ? w : smallest;
        if (in && w > kept) kept = w;
        wrong += copy[i] != (in ? w : -INFINITY);
        if (w >= low && w <= high) wrong += packed[count++] != w;
        if (w >= low && found == n) found = i;
        above += w > 1 && w <= high;
        equal += w == 1;
    }
    expect(wrong == 0 && copy[n] == -1, isa->name, "wrong logits of a copy", (double)wrong, 0);
    expect(kept_by_copy == kept, isa->name, "largest of a copy", kept_by_copy, kept);
    expect(c->largest(x, n) == largest, isa->name, "largest", c->largest(x, n), largest);
    smallest = smallest > low ? smallest : low;
    expect(c->smallest(x, n, low) == smallest, isa->name, "smallest", c->smallest(x, n, low),
           smallest);
    expect(n_packed == count, isa->name, "packed", (double)n_packed, (double)count);
    expect(c->find(x, n, low) == found, isa->name, "first", (double)c->find(x, n, low),
           (double)found);
    const cpu_tally tally = c->tally(x, n, 1, high);
    expect(tally.above == above, isa->name, "above", (double)tally.above, (double)above);
    expect(tally.equal == equal, isa->name, "equal", (double)tally.equal, (double)equal);
    c->maxima(x, n, maxima);
    for (uint64_t i = 0; i < (n + 1023) / 1024 * CPU_LANES; i++)
        of_groups = maxima[i] > of_groups ? maxima[i] : of_groups;
    expect(of_groups == largest, isa->name, "largest of groups", of_groups, largest);
    n_within = c->within(mask, (uint32_t)(n / 32), 1u << 31, 1u << 30, within);
    for (uint64_t i = 0, next = 0; i < n / 32; i++)
        if (mask[i] >> 30 == 2) wrong += within[next++] != (mask[i] & 0x3fffffffu), n_within--;
    expect(wrong == 0 && n_within == 0, isa->name, "tokens within", (double)n_within, 0);
}

/* Probabilities and noise, from their definitions for one number. */
static void check_draw(const cpu_isa *isa, const float *x, uint64_t n) {
    static uint64_t sums[CPU_CHOICE_CHAINS][CPU_CHOICE_RANGES];
    static float slab[CPU_CHOICE_SLAB + CPU_LANES];
    const float largest = isa->f32->choice.largest(x, n), scale = 1048576.0f / 7;
    if (largest == -INFINITY) return;
    cpu_masses masses = {x, n, largest - 14, largest, largest, scale, 0, 12, sums, slab};
    cpu_race race = {.w = x,
                     .largest = largest,
                     .scale = scale,
                     .lowest = largest - 14,
                     .last = (uint32_t)(n / 2),
                     .place = random_bits(),
                     .choice = 3,
                     .seed = {1, random_bits()},
                     .key = 60 << 20};
    uint64_t total = 0, expected = 0;
    double exps = 0;
    memset(sums, 0, sizeof sums);
    int64_t least = race.key;
    uint32_t token = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (x[i] > -INFINITY) exps += exp((double)x[i] - largest);
        if (!(x[i] >= race.lowest)) continue;
        const uint32_t u = choice_distance(largest, x[i], scale);
        const struct choice_words noise =
            choice_philox(i / 4, race.place, race.choice, 0, race.seed[0], race.seed[1]);
        const int64_t key = (int64_t)u + choice_gumbel(noise.word[i % 4]);
        expected += choice_probability(u);
        sums[0][u >> 12] -= choice_probability(u);
        if (key < least && (x[i] > race.lowest || i <= race.last)) {
            least = key;
            token = i;
        }
    }
    isa->f32->choice.masses(&masses);
    for (unsigned i = 0; i < CPU_CHOICE_RANGES; i++)
        total += sums[0][i] + sums[1][i] + sums[2][i] + sums[3][i] != 0;
    expect(total == 0, isa->name, "wrong sums of probabilities", (double)total, 0);
    total = isa->f32->choice.mass(&masses);
    expect(total == expected, isa->name, "sum of probabilities", (double)total, (double)expected);
    isa->f32->choice.race(&race, 0, (uint32_t)n);
    expect(race.key == least, isa->name, "key", (double)race.key, (double)least);
    expect(race.token == token, isa->name, "token", race.token, token);
    const double sum = isa->f32->choice.exp_sum(x, n, largest);
    expect(fabs(sum - exps) <= 2e-6 * exps, isa->name, "sum of exp", sum, exps);
}

static void check_choice(const cpu_isa *isa) {
    static float x[MAX_LOGITS];
    for (uint64_t n = 1; n <= MAX_LOGITS; n += 1 + n / 7) {
        random_logits(x, n);
        check_passes(isa, x, n);
        check_draw(isa, x, n);
    }
}

int main(void) {
    const cpu_isa *isa;
    for (uint32_t i = 0; (isa = cpu_variant(i)) != NULL; i++) {
        printf("%s\n", isa->name);
        for (uint64_t n_rows = 1; n_rows < MAX_ROWS; n_rows += 1 + n_rows * 2 / 3) {
            check_product(isa, OXB_FILE_FORMAT_Q1_0, CPU_LAYOUT_PANELS, n_rows, 2304, 0);
            check_product(isa, OXB_FILE_FORMAT_Q2_0, CPU_LAYOUT_PANELS, n_rows, 192, 0);
            check_product(isa, OXB_FILE_FORMAT_PQ2_0, CPU_LAYOUT_PANELS, n_rows, 2304, 0);
            check_product(isa, OXB_FILE_FORMAT_PQ2_0, CPU_LAYOUT_TRITS, n_rows, 2304, 1);
            check_product(isa, OXB_FILE_FORMAT_PQ2_0, CPU_LAYOUT_TRITS, n_rows, 128, 0);
            check_product(isa, OXB_FILE_FORMAT_PTQ1_0, CPU_LAYOUT_DIGITS, n_rows, 2304, 1);
        }
        for (uint32_t n = 2; n <= 512; n = n * 3 / 2 + n % 2)
            for (uint32_t heads = 1; heads <= 4; heads++)
                for (int half = 0; half < 2; half++)
                    check_attention(isa, n + n % 2, heads, 1 + n % 190, half);
        for (uint64_t k = 1; k <= MAX_K; k += 1 + k / 2) {
            check_dense(isa, OXB_DEVICE_FORMAT_F32, k);
            check_dense(isa, OXB_DEVICE_FORMAT_F16, k);
            check_dense(isa, OXB_DEVICE_FORMAT_BF16, k);
            check_dense(isa, OXB_DEVICE_FORMAT_Q8_0, (k + 31) / 32 * 32);
        }
        check_swiglu(isa);
        check_choice(isa);
        check_recurrent(isa);
    }
    return failures < 100 ? failures : 100;
}
