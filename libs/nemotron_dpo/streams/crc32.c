/* CRC-32 as zlib's: of a buffer, and of many records of scores in one call.

   The CRC is the remainder of a polynomial over bits, which 64 x 64 bit products without carries fold by 64 bytes at a time:
   Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009, whose constants for
   zlib's polynomial these are. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <immintrin.h>

#if defined(__VPCLMULQDQ__) && defined(__AVX512F__) && defined(__AVX512BW__)
#define WIDE 1
#else
#define WIDE 0
#endif

enum { AHEAD = 4, MOST_AHEAD = 512 }; /* records whose memory is asked for beforehand; bytes of a side of them */

typedef struct {
    const float *values;
    const int32_t *ends; /* record i lies between ends[i] and ends[i + 1] */
} Lists;

typedef struct {
    const char *ids; /* of 16 bytes */
    const uint32_t *checksums;
    Lists chosen, rejected;
} Records;

static inline __m128i get(const void *from) { return _mm_loadu_si128(from); }

/* x moved on by as many bits as `by` stands for, plus what lies there */
static inline __m128i fold(__m128i x, __m128i by, __m128i there) {
    __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* x: 64 bytes and all of the multiples of 64 of the `size` that follow, folded into 64; how many of these there were */
static inline int64_t fold_by_64(__m128i x[4], const char *first, const char *bytes, int64_t size, __m128i by) {
    int64_t at = 0;
#if WIDE
    const __m512i by_all = _mm512_broadcast_i32x4(by);
    __m512i all = _mm512_loadu_si512(first);
    for (; at + 64 <= size; at += 64) {
        __m512i low = _mm512_clmulepi64_epi128(all, by_all, 0x00), high = _mm512_clmulepi64_epi128(all, by_all, 0x11);
        all = _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(bytes + at), 0x96); /* xor of the three */
    }
    _mm512_storeu_si512(x, all);
#else
    for (int i = 0; i < 4; i++) x[i] = get(first + 16 * i);
    for (; at + 64 <= size; at += 64)
        for (int i = 0; i < 4; i++) x[i] = fold(x[i], by, get(bytes + at + 16 * i));
#endif
    return at;
}

/* of 64 bytes and `size` more, a multiple of 16, without the inversions at both ends: zeros in front change nothing */
static uint32_t remainder_of(const char *first, const char *bytes, int64_t size) {
    const __m128i by_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), by_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i by_8 = _mm_set_epi64x(0, 0x0163cd6124), reduction = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i low_32 = _mm_setr_epi32(~0, 0, ~0, 0);
    __m128i x[4];
    int64_t at = fold_by_64(x, first, bytes, size, by_64);
    __m128i all = fold(fold(fold(x[0], by_16, x[1]), by_16, x[2]), by_16, x[3]);
    for (; at < size; at += 16) all = fold(all, by_16, get(bytes + at));
    all = _mm_xor_si128(_mm_srli_si128(all, 8), _mm_clmulepi64_si128(all, by_16, 0x10)); /* 128 bits to 96 */
    __m128i rest = _mm_srli_si128(all, 4);
    all = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(all, low_32), by_8, 0x00), rest); /* to 64 */
    __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(all, low_32), reduction, 0x10);
    quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_32), reduction, 0x00);
    return _mm_extract_epi32(_mm_xor_si128(all, quotient), 1);
}

/* of a buffer of no less than 64 bytes, which goes on from what has the checksum `before` */
uint32_t crc32_of(const char *bytes, int64_t size, uint32_t before) {
    char first[64] = {0};
    int64_t padding = -size & 15, count = 64 - padding;
    uint32_t head;
    memcpy(&head, bytes, 4);
    head ^= ~before;
    memcpy(first + padding, bytes, count);
    memcpy(first + padding, &head, 4);
    return ~remainder_of(first, bytes + count, size - count);
}

static int64_t bytes_of(Lists side, int64_t row) { return (side.ends[row + 1] - side.ends[row]) * (int64_t)sizeof(float); }

static int64_t padded_size(Lists chosen, Lists rejected, int64_t row) {
    int64_t size = (20 + bytes_of(chosen, row) + bytes_of(rejected, row) + 15) / 16 * 16;
    return size < 64 ? 64 : size;
}

/* memcpy, in place: half of the copies are of less than 200 bytes */
static inline void copy(char *to, const void *from, int64_t size) {
#if WIDE
    int64_t at = 0;
    for (; at + 64 <= size; at += 64) _mm512_storeu_si512(to + at, _mm512_loadu_si512((const char *)from + at));
    const __mmask64 rest = ((__mmask64)1 << (size - at)) - 1;
    _mm512_mask_storeu_epi8(to + at, rest, _mm512_maskz_loadu_epi8(rest, (const char *)from + at));
#else
    memcpy(to, from, size);
#endif
}

/* CRC-32 of a record's id, its number of chosen log-probs and all log-probs, put together in `memory` */
static uint32_t checksum(const char *id, Lists chosen, Lists rejected, int64_t row, char *memory) {
    int64_t sizes[] = {bytes_of(chosen, row), bytes_of(rejected, row)}, size = padded_size(chosen, rejected, row);
    int64_t start = size - 20 - sizes[0] - sizes[1];
    uint32_t head, count = sizes[0] / sizeof(float);
    memset(memory, 0, start);
    memcpy(&head, id, 4);
    head = ~head;
    memcpy(memory + start, &head, 4);
    memcpy(memory + start + 4, id + 4, 12);
    memcpy(memory + start + 16, &count, 4);
    copy(memory + start + 20, chosen.values + chosen.ends[row], sizes[0]);
    copy(memory + start + 20 + sizes[0], rejected.values + rejected.ends[row], sizes[1]);
    return ~remainder_of(memory, memory + 64, size - 64);
}

static void expect_side(Lists side, int64_t row) {
    const char *from = (const char *)(side.values + side.ends[row]);
    for (int64_t at = 0; at < bytes_of(side, row) && at < MOST_AHEAD; at += 64) __builtin_prefetch(from + at);
}

/* is_right[i]: whether record rows[i] has its checksum. 1 where there is no memory to tell, else 0 */
int64_t check_records(const Records *of, const int64_t *rows, int64_t num_rows, uint8_t *is_right) {
    int64_t most = 0;
    for (int64_t i = 0; i < num_rows; i++) {
        int64_t size = padded_size(of->chosen, of->rejected, rows[i]);
        most = size > most ? size : most;
    }
    char *memory = malloc(most ? most : 1);
    if (!memory) return 1;
    for (int64_t i = 0; i < num_rows; i++) {
        if (i + AHEAD < num_rows) {
            int64_t next = rows[i + AHEAD];
            expect_side(of->chosen, next);
            expect_side(of->rejected, next);
            __builtin_prefetch(of->ids + 16 * next);
            __builtin_prefetch(of->checksums + next);
        }
        uint32_t found = checksum(of->ids + 16 * rows[i], of->chosen, of->rejected, rows[i], memory);
        is_right[i] = found == of->checksums[rows[i]];
    }
    free(memory);
    return 0;
}
