/* The exponential without a branch: within 2e-7 of the true value, relatively; infinite
 * above 88.73, 0 below -104, NaN for NaN. Included after the simd_*.h of a variant. */
#ifndef CPU_EXP_H
#define CPU_EXP_H

SIMD_INLINE lanes lanes_exp(lanes x) {
    const lanes shifter =
        lanes_of(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    /* A NaN stays: it is the second operand. */
    x = lanes_smaller(lanes_of(89.0f), lanes_larger(lanes_of(-104.0f), x));
    const lanes n = lanes_sub(lanes_add(lanes_mul(x, lanes_of(1.44269504f)), shifter), shifter);
    /* ln 2 in two parts: n times the first is exact. */
    lanes r = lanes_sub(x, lanes_mul(n, lanes_of(0.693359375f)));
    r = lanes_add(r, lanes_mul(n, lanes_of(2.12194440e-4f)));
    /* Minimax on |r| <= ln 2 / 2. */
    lanes p = lanes_of(1.9875691500e-4f);
    p = lanes_fma(p, r, lanes_of(1.3981999507e-3f));
    p = lanes_fma(p, r, lanes_of(8.3334519073e-3f));
    p = lanes_fma(p, r, lanes_of(4.1665795894e-2f));
    p = lanes_fma(p, r, lanes_of(1.6666665459e-1f));
    p = lanes_fma(p, r, lanes_of(5.0000001201e-1f));
    p = lanes_add(lanes_fma(lanes_mul(p, r), r, r), lanes_of(1.0f));
    /* 2^n in two factors, so that the result may be subnormal or infinite. */
    const lanes half = lanes_sub(lanes_add(lanes_mul(n, lanes_of(0.5f)), shifter), shifter);
    return lanes_mul(lanes_mul(p, lanes_power(half)), lanes_power(lanes_sub(n, half)));
}

#endif
