// Documentation of the JSON interface, from its OpenAPI description.

// Without a validator, which would be a server elsewhere.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
