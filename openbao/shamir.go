package openbao

// interpolate returns the values at x of the polynomials over GF(2^8), one for
// each byte, that go through the shares: at 0 the shared secret, elsewhere the
// share with that number. A share is such values followed by its number, as
// OpenBao makes them. All shares are of one length and have different numbers.
//
// Own code, since libraries find the secret only and cannot tell a wrong share
// from the right ones.
func interpolate(shares [][]byte, x byte) []byte {
	values := make([]byte, len(shares[0])-1)
	for i, share := range shares {
		weight := byte(1)
		for j, other := range shares {
			if i != j {
				weight = multiply(weight, multiply(x^number(other), invert(number(share)^number(other))))
			}
		}
		for k := range values {
			values[k] ^= multiply(share[k], weight)
		}
	}
	return values
}

func number(share []byte) byte { return share[len(share)-1] }

// multiply is the product in GF(2^8) modulo x^8+x^4+x^3+x+1, as AES has it.
func multiply(a, b byte) byte {
	var product byte
	for range 8 {
		product ^= -(b & 1) & a
		a = a<<1 ^ -(a>>7)&0x1b
		b >>= 1
	}
	return product
}

// invert is a^254, the inverse of all but 0.
func invert(a byte) byte {
	inverse := byte(1)
	for range 7 {
		a = multiply(a, a)
		inverse = multiply(inverse, a)
	}
	return inverse
}
